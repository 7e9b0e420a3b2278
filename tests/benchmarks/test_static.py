"""`emosteer bench static`: the counts, the limits of a multiprocessor, and the files it writes."""

import csv
import dataclasses
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

from emosteer.benchmarks.devices import ARCHITECTURES, DEVICES
from emosteer.benchmarks.predicted import REDUCTION, START, STEP, TRIP, Decoder, parts, work

RESULTS = Path(__file__).parents[2] / "bench" / "results"


@pytest.mark.parametrize(
    ("registers", "shared", "threads", "share"),
    [
        (32, 0, 256, 1.0),
        (64, 0, 512, 0.5),
        (65, 0, 512, 0.25),
        (128, 0, 256, 0.25),
        (32, 100 * 1024, 1024, 1.0),
    ],
)
def test_occupancy_as_the_guide_counts_it(registers, shared, threads, share):
    """Registers go to a warp by 256: 65 of a thread cost as much as 72, and one block of 512 fits."""
    assert ARCHITECTURES["sm_90"].occupancy(registers, shared, threads) == share


def test_small_blocks_run_into_the_number_of_blocks():
    assert ARCHITECTURES["sm_90"].resident_threads(32, 0, 32) == 32 * 32


def test_bytes_of_steering():
    """Two bytes read and two written an element, and each direction once."""
    found = work("steer_", 1000, 4096, 2, directions=10)
    assert found.least == 1000 * 4096 * 4 + 10 * 4096 * 4
    assert found.excess == 1
    assert work("steer_", 1000, 16384, 2, resident=False).excess > 1.4
    assert work("rms_norm", 1, 64, 2).seconds(DEVICES[0]) == pytest.approx(
        START + TRIP + 2 * REDUCTION, rel=1e-3
    )
    with pytest.raises(ValueError, match="'conv' has no count"):
        work("conv", 1, 1, 2)


def test_a_faster_memory_is_a_faster_copy():
    times = {d.name: work("rms_norm", 65536, 4096, 2).seconds(d) for d in DEVICES}
    assert times["B200"] < times["MI300X"] < times["H200"] < times["H100"] < times["A100"]
    h100 = next(d for d in DEVICES if d.name == "H100")
    assert times["H100"] == pytest.approx(2 * 65536 * 4096 * 2 / (0.9 * h100.bandwidth), rel=1e-2)


def test_few_blocks_and_many_steps_take_time():
    """A projection of 32 rows on 171 directions: 22 blocks of 128 turns each would take 45 µs and more; split, 8."""
    h100 = next(d for d in DEVICES if d.name == "H100")
    split = work("project", 32, 4096, 2)
    assert (split.blocks, split.steps, split.kernels) == (264, 11, 2)
    assert split.latency(h100) == pytest.approx(2 * START + 1.2e-6 + 2 * TRIP + 11 * STEP)
    many = work("project", 4096, 4096, 2)
    assert (many.blocks, many.steps, many.waves(h100)) == (3 * 64, 128, 2)
    assert work("steer_rms_norm_", 1, 4096, 2).latency(h100) > work("rms_norm", 1, 4096, 2).latency(h100)


def test_counted_as_it_is_launched():
    """The splits and blocks of the predictions are those of the launches, as compiled kernels are launched."""
    pytest.importorskip("triton")
    sizes = [(tokens, dim) for tokens in (1, 17, 64, 65, 4096) for dim in (576, 4096, 16384)]
    code = f"""
import torch
from emosteer.kernels import launches
for tokens, dim in {sizes}:
    x, v = (torch.empty(n, dim, device="meta") for n in (tokens, 171))
    splits, rows = launches.splits(x, v), launches.Rows.dense(x)
    out = torch.empty(splits or 1, tokens, 171, device="meta")
    if splits:
        launch = launches.project_parts(x, rows, v, None, out)
    else:
        launch = launches.project(x, rows, v, None, False, out[0])
    a, b, c = (*launch.grid, 1)[:3]
    print(splits, a * b * c)
"""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)
    want = [f"{parts(n, d, 171)} {work('project', n, d, 2).blocks}" for n, d in sizes]
    assert done.stdout.split("\n")[:-1] == want, done.stderr


def test_shares_of_a_decode_step():
    for device in DEVICES:
        for batch in (1, 32, 256):
            shares = Decoder().shares(device, batch, "triton")
            assert 0 < shares["fused"] < shares["graph"]
            assert shares["eager"] > 0


def test_what_steering_adds_to_a_step():
    """Fewer launches than the norms make by themselves; compiled, it waits more; large batches hide the caller."""
    for device in DEVICES:
        for backend in ("cuda", "triton"):
            one, many = (Decoder().added(device, batch, backend) for batch in (1, 256))
            assert one["eager"] < one["two_cards"] < 0 < one["compiled"] < many["compiled"]
            assert abs(many["eager"]) < Decoder().step(device, 256)
    h100 = next(device for device in DEVICES if device.name == "H100")
    slow = dataclasses.replace(h100, bandwidth=h100.bandwidth / 10)  # its caller is never waited for
    assert 0 > Decoder().added(slow, 1, "triton")["eager"] > Decoder().added(h100, 1, "triton")["eager"]


def test_the_command(tmp_path):
    pytest.importorskip("triton")
    from emosteer.cli import app

    only = ["--width", "4096", "--dtype", "bfloat16", "--device", "H100"]
    done = CliRunner().invoke(app, ["bench", "static", *only, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    with (tmp_path / "static.csv").open() as file:
        found = list(csv.DictReader(line for line in file if not line.startswith("#")))
    triton = [row for row in found if row["backend"] == "triton"]
    assert {row["device"] for row in triton} == {"H100"}
    assert len(triton) == 8
    assert all(row["spill_bytes"] == "0" for row in found)
    assert all(float(row["occupancy"]) > 0 for row in found)
    page = (tmp_path / "static.md").read_text()
    assert "**predicted**" in page
    assert "bytes moved / (0.9 · published bandwidth)" in page
    assert "share of a decode step" in page
    with (tmp_path / "static_shares.csv").open() as file:
        shares = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert {(row["device"], row["batch"]) for row in shares if row["backend"] == "triton"} == {
        (device.name, batch) for device in DEVICES for batch in ("1", "32", "256")
    }
    modes = {"predicted_eager", "predicted_graph", "predicted_fused"}
    assert modes < set(shares[0])
    # What no machine code says is marked as what it is.
    read = {"registers", "shared_bytes", "threads", "spill_bytes", "occupancy"}
    named = {"backend", "kernel", "dtype", "D", "device", "architecture"}
    counted = {"blocks_32", "serial_steps_32", "kernels_32"}  # from the launch
    assert all(name in read | named | counted or name.startswith("predicted") for name in found[0])


def test_the_committed_table_is_whole():
    """Every kernel, dtype, width and GPU; times for 1 to 65,536 tokens; no spills."""
    pytest.importorskip("triton")
    from emosteer.benchmarks import static

    with (RESULTS / "static.csv").open() as file:
        found = list(csv.DictReader(line for line in file if not line.startswith("#")))
    triton = {(r["kernel"], r["dtype"], int(r["D"]), r["device"]) for r in found if r["backend"] == "triton"}
    assert triton == set(product(static.TRITON, static.DTYPES, static.WIDTHS, (d.name for d in DEVICES)))
    assert {"predicted_us_1", "predicted_us_65536"} < set(found[0])
    assert {r["spill_bytes"] for r in found} == {"0"}


def test_the_committed_machine_code_is_whole():
    """A row for each variant that a call can reach and each target, and none that spills."""
    pytest.importorskip("triton")
    from emosteer.kernels.survey import every

    with (RESULTS / "machine_code.csv").open() as file:
        found = list(csv.DictReader(line for line in file if not line.startswith("#")))
    listed = [(r["name"], r["dtype"], int(r["dim"]), r["target"]) for r in found]
    assert listed == [tuple(pick) for pick in every(*ARCHITECTURES)]
    assert {r["spills"] for r in found} == {"0"}


@pytest.mark.full
def test_every_variant_by_the_command(tmp_path, monkeypatch):
    pytest.importorskip("triton")
    from emosteer.cli import app
    from emosteer.kernels import survey

    few = survey.every("sm_90")[:1] + survey.every("gfx942")[-1:]
    monkeypatch.setattr(survey, "every", lambda *targets: few)
    done = CliRunner().invoke(app, ["bench", "static", "--all", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "| sm_90 | 1 | 0 | 1 of 1 | 0 of 0 |" in done.output
    assert "| gfx942 | 1 | 0 | 0 of 0 | 0 of 1 |" in done.output
    assert "triton " in (tmp_path / "machine_code.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("arguments", [["--width", "100"], ["--dtype", "int8"], ["--device", "V100"]])
def test_unknown(arguments):
    from emosteer.cli import app

    done = CliRunner().invoke(app, ["bench", "static", *arguments])
    assert isinstance(done.exception, ValueError)
    assert "must be of" in str(done.exception)
