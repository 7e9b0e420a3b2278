"""The machine code of the Triton kernels, compiled without a GPU: no spills, 16 bytes at a time, room for warps."""

import csv
import json
import os
import random
import subprocess
import sys
from dataclasses import fields
from datetime import date
from functools import cache
from pathlib import Path

import pytest
import torch

from emosteer.benchmarks.devices import ARCHITECTURES

pytest.importorskip("triton")
from emosteer.kernels import variants
from emosteer.kernels.offline import Resources
from emosteer.kernels.survey import Pick, digests, every, survey

TABLE = Path(__file__).parents[2] / "bench" / "results" / "machine_code.csv"
# Of the variants whose machine code was read and whose sources are the same, so many are compiled anew.
SAMPLE = 6
NVIDIA = ("sm_80", "sm_90", "sm_100")


@cache
def launches(dtype, dim):
    return dict(variants.of(getattr(torch, dtype), dim))


def check(pick, found):
    """What holds for every variant; the accesses are those of the rows, 16 bytes wide if they are aligned."""
    assert found.spills == 0, f"{pick} spills {found.spills} bytes"
    if pick.target in NVIDIA:
        held = ARCHITECTURES[pick.target].resident_threads(found.registers, found.shared, found.threads)
        claimed = launches(pick.dtype, pick.dim)[pick.name].resident
        assert held >= claimed, f"{pick}: {found.registers} registers leave room for {held} threads"
    stores_rows = pick.name.startswith(("steer", "rms_norm")) or "centred" in pick.name
    if pick.name.startswith("combine_parts"):  # which reads what lies K apart, and a row only for its norm
        assert found.wide_stores == 0, pick
        assert (found.wide_loads >= 2) == ("cosine" in pick.name and pick.dim % 16 == 0), pick
    elif pick.dim % 16 == 0:
        # A row and what it is held against (a direction, a weight, a shift, another tile): 16 bytes at a time.
        assert found.wide_loads >= 2, pick
        assert (found.wide_stores >= 1) == stores_rows, pick
        assert not (stores_rows and found.other_stores), pick
    else:
        assert found.other_loads >= 2, pick
        assert (found.wide_loads, found.wide_stores) == (0, 0), pick
        assert found.other_stores >= 1 or not stores_rows, pick


@pytest.fixture(scope="module")
def committed():
    """`(digest, resources)` of each variant, as `make check-gpu-code` wrote them."""
    names = [field.name for field in fields(Resources)]
    with TABLE.open() as file:
        return {
            Pick(row["name"], row["dtype"], int(row["dim"]), row["target"]): (
                row["digest"],
                Resources(**{name: int(row[name]) for name in names}),
            )
            for row in csv.DictReader(line for line in file if not line.startswith("#"))
        }


def test_every_variant(committed, tmp_path, monkeypatch):
    """All figures of the table hold. Where sources or compiler are no longer those they were read from, the machine
    code is read anew; of the rest a sample is, which another day is another, and gives the figures of the table.
    """
    now = digests(every(*ARCHITECTURES))
    same = [pick for pick, digest in now.items() if committed.get(pick, ("",))[0] == digest]
    for pick in same:
        check(pick, committed[pick][1])
    for pick, found in survey(pick for pick in now if pick not in set(same)).items():
        check(pick, found)
    seed = int(os.environ.get("EMOSTEER_SEED", date.today().toordinal()))
    sample = random.Random(seed).sample(same, min(SAMPLE, len(same)))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for pick, found in survey(sample).items():
        assert found == committed[pick][1], (
            f"{pick} with EMOSTEER_SEED={seed}; `make check-gpu-code` rewrites {TABLE}"
        )


def test_nothing_else_can_be_chosen():
    """Calls of every kind reach all that `every` lists and nothing beyond it."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.choosable"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["unknown"] == []
    assert found["never"] == []
    assert found["listed"] == len(every("sm_90"))


def test_what_the_dispatcher_claims():
    """Threads of a multiprocessor, of 2048: half, a quarter where rows take more registers, an eighth for tiles."""
    claimed = {name: launch.resident for name, launch in launches("bfloat16", 4096).items()}
    assert claimed["steer (1 slot)"] == claimed["rms_norm"] == 1024
    assert claimed["steer (16 slots)"] == claimed["steer_rms_norm (1 slot)"] == 512
    assert min(claimed.values()) == 256


def test_loads_that_are_waited_for_begin_before_the_sums():
    """A single direction and the norm's weight are on their way when the row is first summed."""
    code = """
import torch
from emosteer.kernels import variants
from emosteer.kernels.offline import compile
launches = dict(variants.of(torch.bfloat16, 4096))
for name in ("steer (1 slot)", "steer_rms_norm (1 slot)"):
    code = compile(launches[name], "sm_90")[1]
    print(code[: code.index("BAR.SYNC")].count("LDG.E.128"))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steer, fused = map(int, done.stdout.split())
    assert steer == 1 + 2, "a row of 8 elements a thread, a direction of 8 in float32"
    # A row, perhaps a residual and a weight of 16 elements a thread, a direction of 16 in float32.
    assert fused == 2 + 2 + 2 + 4
