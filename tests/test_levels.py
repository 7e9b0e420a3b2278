"""What the level `quick` leaves out is only what it may."""

import os
from itertools import combinations, product

import pytest

from .levels import covering, examples


@pytest.mark.parametrize("sizes", [(4,), (3, 2), (3, 4, 2, 3), (2, 2, 2, 2, 2, 2)])
def test_every_pair_of_values_is_taken(sizes):
    names = "abcdef"[: len(sizes)]
    combined = [dict(zip(names, values)) for values in product(*map(range, sizes))]
    taken = [combined[i] for i in covering(combined)]
    for one, other in combinations(names, 2):
        wanted = {(c[one], c[other]) for c in combined}
        assert {(t[one], t[other]) for t in taken} == wanted
    assert {t["a"] for t in taken} == set(range(sizes[0]))
    largest = sorted(sizes)[-2:]
    assert len(taken) <= 2 * largest[0] * largest[-1]


def test_combinations_that_are_missing_are_not_asked_for():
    assert covering([{"a": 0, "b": 0}, {"a": 1, "b": 1}, {"a": 1, "b": 1}]) == [0, 1]
    assert covering([]) == []
    assert covering([{"a": 0}, {"a": 1}, {"a": 0}]) == [0, 1]


@pytest.mark.xdist_group("groups")
def test_groups_are_kept_together(request):
    """Some versions of pytest and pytest-xdist ignore groups together, and each process starts Ray anew."""
    if request.config.getoption("dist", "no") == "no" and "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all")
    assert request.node.nodeid.endswith("@groups")


def test_examples():
    assert examples("quick", None, 60) == 20
    assert examples("quick", "triton", 60) == 3
    assert examples("rest", "triton", 60) == examples("all", "triton", 60) == 8
    assert examples("all", "cpu", 60) == 60
    assert examples("quick", None, 5) == 5
