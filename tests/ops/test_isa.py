"""Every instruction set that this processor has gives the right rows, and the same to rounding."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import numpy as np, torch
from emosteer import _cpu, ops
from tests.ops import oracle
from tests.ops.cases import DTYPES, adding, rows, unit
print(_cpu.isa)
for dtype in DTYPES:
    for dim in (1, 7, 8, 15, 16, 17, 576, 577, 4097):
        directions, table = unit(3, dim), adding(5, 3)
        x = rows(5, dim, dtype)
        want = oracle.steered(x, directions, table)
        size = x.double().norm(dim=1).numpy() + np.linalg.norm(want, axis=1)
        oracle.assert_rounded(ops.steer(x, directions, table), want, size)
        oracle.assert_rounded(ops.rms_norm(x, torch.ones(dim)), oracle.normed(x, torch.ones(dim)), size)
        dots = ops.project(x, directions).double().numpy()
        assert np.abs(dots - x.double().numpy() @ directions.double().numpy().T).max() <= 3e-6 * size.max()
"""


def run(isa):
    environment = os.environ | {"EMOSTEER_ISA": isa}
    return subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "avx512bf16"])
def test_instruction_sets(isa):
    done = run(isa)
    if "cannot run here: this processor has baseline" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


def test_unknown_instruction_set():
    done = run("sse9")
    assert done.returncode != 0
    assert "EMOSTEER_ISA=sse9 cannot run here" in done.stderr
