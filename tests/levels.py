"""How much of the suite a run takes: what every change must pass, the rest of it, or all.

`quick`, the default, leaves out tests marked `full`; of those marked `crossed`, and of those that run each of
their cases on a backend that is slow without a GPU, it takes so many combinations of the parameters that each
pair of values comes together in one; and hypothesis draws fewer examples, as tests marked `scaled` do less.
`rest` is what `quick` left out: those that do less there run again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pytest

LEVELS = ("quick", "rest", "all")
# Backends of tests/ops that take milliseconds a row: an interpreter, and fibers that play threads.
SLOW = ("triton", "cuda")
# Examples of a property that `quick` tries: of any test, and under a slow backend.
EXAMPLES, SLOW_EXAMPLES = 20, {"triton": 3, "cuda": 8}
# The same in full.
ALL_EXAMPLES = {"triton": 8, "cuda": 25}
ON = "_hypothesis_internal_use_settings"


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "quick (default): what each change must pass; rest: what quick leaves out; all: both"
    parser.addoption("--level", choices=LEVELS, default="quick", help=text)


def examples(level: str, backend: str | None, wanted: int) -> int:
    """How many examples hypothesis tries of a test that wants so many."""
    if level == "quick":
        return min(wanted, SLOW_EXAMPLES.get(backend or "", EXAMPLES))
    return min(wanted, ALL_EXAMPLES.get(backend or "", wanted))


@pytest.fixture
def level(request: pytest.FixtureRequest) -> str:
    """How much the run takes; for tests marked `scaled`."""
    return request.config.option.level


@pytest.fixture(autouse=True)
def _examples(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    own = getattr(request.function, ON, None)
    if own is not None:
        from hypothesis import settings

        backend = getattr(request.node, "callspec", None) and request.node.callspec.params.get("backend")
        count = examples(request.config.option.level, backend, own.max_examples)
        monkeypatch.setattr(request.function, ON, settings(own, max_examples=count))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Files with slow tests first: else one process ends with them while the others have nothing left to do.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    level = config.option.level
    if level == "all":
        return
    quick = of_quick(items)
    more = {i for i in items if hasattr(getattr(i, "obj", None), ON) or i.get_closest_marker("scaled")}
    kept = quick if level == "quick" else {item for item in items if item not in quick or item in more}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def of_quick(items: Sequence[pytest.Item]) -> set[pytest.Item]:
    """The tests of the level `quick`."""
    kept: set[pytest.Item] = set()
    crossed: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("full"):
            continue
        spec = getattr(item, "callspec", None)
        backend = spec.params.get("backend") if spec else None
        if spec and (backend in SLOW or item.get_closest_marker("crossed")):
            crossed[item.nodeid.split("[")[0], str(backend)].append(item)
        else:
            kept.add(item)
    for group in crossed.values():
        # Values by identity: not all can be compared, and a list of parameters gives the same object each time.
        combined = [{name: id(value) for name, value in item.callspec.params.items()} for item in group]
        kept.update(group[i] for i in covering(combined))
    return kept


def covering(combined: Sequence[Mapping[str, Hashable]]) -> list[int]:
    """Which of the combinations of values to take so that every pair of values that occurs is taken.

    Greedily the one with the most new pairs, the first of equals; a lone parameter counts by its values.
    """
    pairs = [
        set(combinations(sorted(one.items()), 2)) or {(value,) for value in one.items()} for one in combined
    ]
    missing, taken = set().union(*pairs), []
    while missing:
        best = max(range(len(pairs)), key=lambda i: (len(pairs[i] & missing), -i))
        taken.append(best)
        missing -= pairs[best]
    return sorted(taken)
