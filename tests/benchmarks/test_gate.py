"""The gate for speed: when it closes, and that what it measures is what README promises."""

import importlib
import sys
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


def test_slowed_kernels_close_it(gate, monkeypatch):
    """A row operation against a copy, measured: open as it is, closed where each call takes a millisecond more."""
    import torch

    from emosteer import _cpu, ops

    x, to = torch.randn(512, 64), torch.empty(512, 64)
    directions = torch.nn.functional.normalize(torch.randn(3, 64), dim=1)
    table = gate.ops.adding(4, 3)

    def measured():
        run = lambda: ops.steer_(x, directions, table)  # noqa: E731
        return [gate.ops.race("512x64", "steer_", run, "copy_", lambda: to.copy_(x), 5)]

    promise = gate.Promise("operation ÷ copy", 40.0, "steer_", measured)
    assert not promise.verdicts()[0].broken
    for name in gate.KERNELS:
        monkeypatch.setattr(_cpu, name, getattr(_cpu, name))  # put back after the test
    gate.slow(2000.0)
    assert promise.verdicts()[0].broken
