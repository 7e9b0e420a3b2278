"""`emosteer bench gpu` as far as a CPU can run it: every case, and whatever may happen to one of them."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from emosteer.benchmarks import baselines, cases, gpu, model_cases, verdict
from emosteer.benchmarks.devices import DEVICES
from emosteer.benchmarks.report import Report
from tests.ops import host, interpreter

H100 = next(device for device in DEVICES if device.name == "H100")


@pytest.fixture(autouse=True)
def rounding():
    pytest.importorskip("triton")
    interpreter.mend()


@pytest.mark.full
def test_every_case_runs_and_its_sides_agree():
    """Both backends: Triton in its interpreter, the CUDA kernels in their host build."""
    with host.installed():
        rows = gpu.run(None, dry_run=True).rows
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["case"].split()[0] for row in rows} == {
        "steer_", "rms_norm", "steer_rms_norm_", "project", "project_extremes_", "covariance", "decode",
    }  # fmt: skip
    sides = {row["side"] for row in rows}
    assert sides >= {"cuda", "triton", "eager torch", "torch.compile", "torch.cov", "copy of the bytes"}
    assert sides >= {"F.rms_norm", "plain hook", "GEMM TF32", "GEMM bfloat16"}
    assert sides >= {"unsteered", "steered", "steered, own kernels", "plain hooks"}
    modes = {row["case"].split("B=2 ")[1] for row in rows if row["case"].startswith("decode")}
    assert modes == set(model_cases.MODES)


def test_sides_that_disagree_are_rows(monkeypatch):
    monkeypatch.setattr(baselines, "project", lambda x, directions: x.float() @ directions.T * 1.01)
    report = gpu.run(None, dry_run=True, containing="project 1×64 bfloat16")
    found = {row["side"]: row["status"] for row in report.rows}
    assert found["triton"].startswith("differs from torch.compile by 9.9")
    assert found["GEMM TF32"] == found["torch.compile"] == "ok"
    assert "1 differ" in report.summary()


def test_nothing_that_fails_is_the_end(monkeypatch, tmp_path):
    """A case that cannot be made, a side that cannot run, one that has no memory: rows, and the files are whole."""

    def no_memory(x, weight):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n 20.00 GiB")

    def broken(of):
        raise RuntimeError("no such case")

    monkeypatch.setattr(baselines, "rms_norm", no_memory)
    monkeypatch.setattr(cases, "_OPERATIONS", (broken, cases._rms_norm, cases._steer_))
    broken.__name__ = "_broken"
    written = []
    write = Report.write
    monkeypatch.setattr(Report, "write", lambda self: (written.append(len(self.rows)), write(self))[1])
    monkeypatch.setattr(gpu.os, "environ", {"TRITON_INTERPRET": "1"})
    report = gpu.run(tmp_path, dry_run=True, containing="1×64 bfloat16")
    found = {(row["case"].split()[0], row["side"]): row["status"] for row in report.rows}
    assert found["broken", "all"] == "failed: RuntimeError: no such case"
    assert found["rms_norm", "eager torch"].startswith(
        "out of memory: CUDA out of memory. Tried to allocate 20"
    )
    assert found["rms_norm", "triton"] == found["steer_", "triton"] == "ok"
    assert written[0] == 1, "not written after the first case"
    with (tmp_path / "gpu.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert [row["status"] for row in rows] == [row["status"] for row in report.rows]
    assert json.loads((tmp_path / "gpu.json").read_text())["machine"]["torch"] == torch.__version__
    assert not list(tmp_path.glob("*.part"))


def test_skipped_for_time_and_for_memory(monkeypatch):
    report = gpu.run(None, dry_run=True, containing="rms_norm 1×64", minutes=1e-9)
    assert {row["status"] for row in report.rows} == {"skipped: the minutes were over"}
    assert "skipped" in report.summary()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (8e9, 24e9))
    large = max(cases.operation_plans(torch.device("meta"), small=False), key=lambda plan: plan.bytes)
    assert "needs about" in gpu._skipped(large, torch.device("cuda"), None)
    small = next(iter(cases.operation_plans(torch.device("meta"), small=False)))
    assert gpu._skipped(small, torch.device("cuda"), None) is None


def test_plans_say_what_they_take():
    """What a case's tensors take lies below what its plan says, and both are of one size."""
    device = torch.device("cpu")
    for plan in cases.operation_plans(device, small=True):
        made = plan.make()
        held = [cell.cell_contents for cell in made.sides["eager torch"].__closure__]
        tensors = next(one for one in held if isinstance(one, cases._Tensors))
        assert sum(t.nbytes for t in vars(tensors).values() if isinstance(t, torch.Tensor)) <= plan.bytes


def test_measured_as_on_a_device(monkeypatch):
    """Events and waits recorded: the flush lies before each call, none of it between the two events."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def elapsed_time(self, _other):
            return 0.002

    empty = torch.empty
    flush = SimpleNamespace(zero_=lambda: log.append("flush"))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(
        torch, "empty", lambda *a, **k: flush if k.get("device") == "cuda" else empty(*a, **k)
    )
    times = gpu._measure(lambda: log.append("call"))
    assert times == [2e-6] * gpu.ROUNDS
    assert log[5:-1] == ["flush", "event", "call", "event"] * gpu.ROUNDS
    assert log[-1] == "wait"
    row = gpu._timed(times, 4096.0)
    assert row["median_us"] == pytest.approx(2.0)
    assert row["gigabytes_per_second"] == pytest.approx(2.048)
    log.clear()
    gpu._host(lambda: log.append("call"))
    assert log == ["call", "wait", *["call"] * gpu.HOST_CALLS, "wait"]


def row(case, side, median, op=None, tokens=1, host=None, moved=0.0):
    return {
        "case": case, "side": side, "status": "ok", "median_us": median, "host_us": host, "op": op,
        "shape": (tokens, 4096, 2), "gigabytes_per_second": moved / median * 1e-3 if moved else None,
    }  # fmt: skip


def test_measured_over_predicted(monkeypatch, tmp_path):
    report = Report(tmp_path)
    report.machine = {"gpu": "NVIDIA H100 80GB HBM3"}
    assert report.device is H100
    predicted = verdict.predicted_us(row("", "cuda", 1.0, "steer_"), H100)
    report.add(row("steer_ 1×4096 bfloat16", "cuda", 2 * predicted, "steer_", host=4.0))
    report.add(row("rms_norm 1×4096 bfloat16", "cuda", 1.9, "rms_norm"))
    report.add(row("steer_rms_norm_ 1×4096 bfloat16", "cuda", 3.1, "steer_rms_norm_", host=9.0))
    report.add(
        row("steer_ 65536×4096", "copy of the bytes", 400.0, "steer_", 65536, moved=400e-6 * 0.88 * 3.35e12)
    )
    for side, time in (("unsteered", 5000.0), ("steered", 4800.0)):
        report.add(row("decode step B=1 eager", side, time))
    report.write()
    page = (tmp_path / "gpu.md").read_text()
    assert "| cuda steer_ | 1 | 2.00 | 2.00 | 2.00 |" in page
    assert "BANDWIDTH_SHARE: 0.90 assumed, 0.88 measured: holds" in page
    assert "START + TRIP + 2 REDUCTION: 1.90 µs assumed, 1.90 µs measured: holds" in page
    assert "LAUNCH['cuda']: 4.30 µs assumed, 9.00 µs measured: off by a factor of 2.09" in page
    assert "LAUNCH['triton']: 6.30 µs assumed, not measured" in page
    assert "decode step B=1 eager steered ÷ unsteered 0.960" in report.summary()
    assert "\n" not in report.summary()


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures where there is a GPU")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "torch sees no GPU; --dry-run"),
        (["--dry-run", "--case", "fft"], "--case 'fft' is in none of their names"),
        (["--dry-run", "--minutes", "0"], "--minutes must be more than 0"),
    ],
)
def test_what_is_refused(arguments, message):
    from emosteer.cli import app

    done = CliRunner().invoke(app, ["bench", "gpu", *arguments])
    assert message in str(done.exception)


def test_the_command():
    from emosteer.cli import app

    done = CliRunner().invoke(app, ["bench", "gpu", "--dry-run", "--case", "rms_norm 1×64 bfloat16"])
    assert done.exit_code == 0, done.output
    assert "a dry run measures nothing and writes nothing" in done.output
    assert "no GPU (dry run)" in done.output.splitlines()[-1]
