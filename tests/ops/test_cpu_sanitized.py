"""The CPU row kernels read and write nothing but their own, do nothing undefined, and their threads do not meet."""

import pytest

from . import sanitized

pytestmark = [pytest.mark.full, pytest.mark.slow]


@pytest.mark.parametrize("instructions", sanitized.INSTRUCTIONS)
@pytest.mark.parametrize("sanitizer", sanitized.SANITIZERS)
def test_silent(sanitizer, instructions):
    if sanitized.lacks(instructions):
        pytest.skip(f"this processor has no {instructions}")
    done = sanitized.run(sanitizer, instructions)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 10_000
    assert not done.stderr


@pytest.mark.parametrize(
    ("sanitizer", "changes", "symptom"),
    [
        (
            "threads",
            {"dispatch.cpp": ("static thread_local std::vector<float>", "static std::vector<float>")},
            "data race",
        ),
        (
            "threads",
            {"shares.hpp": ("count * (rank + 1) / team", "count * (rank + 1) / team + (rank + 1 < team)")},
            "data race",
        ),
        (
            "memory",
            {"row_loops.hpp": ("n - i < kLanes ? load_tail(x + i, n - i) : load(x + i)", "load(x + i)")},
            "heap-buffer-overflow",
        ),
        (
            "memory",
            {
                "lanes.hpp": (
                    "  V v;\n  std::memcpy(&v, from, sizeof v);\n  return v;",
                    "  return *(const V*)from;",
                )
            },
            "misaligned address",
        ),
    ],
    ids=["shared scratch", "shares that overlap", "beyond the end", "alignment"],
)
def test_planted(sanitizer, changes, symptom):
    done = sanitized.run(sanitizer, changes=changes)
    assert done.returncode != 0
    assert symptom in done.stderr
