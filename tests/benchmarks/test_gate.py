"""The gate for speed: when it closes, and that what it measures is what README promises."""

import importlib
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield importlib.import_module("gate")
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and BENCH in Path(sys.modules[name].__file__).parents:
            del sys.modules[name]


@pytest.mark.parametrize(
    ("ratios", "bar", "broken"),
    [
        ([0.98, 0.99, 0.97, 0.98], 1.0, False),
        ([1.10, 1.11, 1.09, 1.10], 1.0, False),  # beyond its spread, not by 15%
        ([1.20, 1.21, 1.19, 1.20], 1.0, True),
        ([0.90, 1.20, 1.60, 1.20], 1.0, False),  # by 20%, within its spread
        ([0.30, 0.31, 0.30, 0.29], 0.25, True),
    ],
)
def test_when_it_closes(gate, ratios, bar, broken):
    verdict = gate.Verdict("decode", bar, ratios)
    assert verdict.broken == broken
    assert ("BROKEN" in str(verdict)) == broken


def test_a_promise_counts_its_own_side(gate):
    sides = [
        gate.Result("B=1", "unsteered", "unsteered", [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
        gate.Result("B=1", "emosteer", "unsteered", [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]),
    ]
    (verdict,) = gate.Promise("decode", 1.0, "emosteer", lambda: sides).verdicts()
    assert verdict.name == "decode: B=1"
    assert verdict.broken


def test_slowed_kernels_take_longer(gate, monkeypatch):
    """What `--slowed` does to every kernel that a steered model calls."""
    import torch

    from emosteer import _cpu, ops

    x, directions = torch.randn(4, 64), torch.nn.functional.normalize(torch.randn(3, 64), dim=1)
    for name in gate.KERNELS:
        monkeypatch.setattr(_cpu, name, getattr(_cpu, name))  # put back after the test
    gate.slow(3000.0)
    table = gate.ops.adding(4, 3)
    for run in (
        lambda: ops.steer_(x, directions, table),
        lambda: ops.steer_rms_norm_(x, torch.ones(64), directions, table),
        lambda: ops.rms_norm(x, torch.ones(64)),
    ):
        began = time.perf_counter()
        run()
        assert time.perf_counter() - began >= 3e-3
