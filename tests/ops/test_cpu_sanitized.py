"""The CPU row kernels read and write nothing but their own, do nothing undefined, and their threads do not meet."""

import pytest

from . import sanitized

pytestmark = [pytest.mark.full, pytest.mark.slow]

# By sanitizer; each bug sleeps until it is called by its number.
PLANTED = {
    "threads": {
        "dispatch.cpp": [
            (
                "  static thread_local std::vector<float> scratch[4];",
                "  static std::vector<float> one[4];\n"
                "  static thread_local std::vector<float> own[4];\n"
                "  auto& scratch = planted(1) ? one : own;",
            )
        ],
        "shares.hpp": [
            ("count * (rank + 1) / team", "count * (rank + 1) / team + (planted(2) && rank + 1 < team)")
        ],
    },
    "memory": {
        "row_loops.hpp": [
            (
                "n - i < kLanes ? load_tail(x + i, n - i) : load(x + i)",
                "n - i < kLanes && !planted(3) ? load_tail(x + i, n - i) : load(x + i)",
            )
        ],
        "lanes.hpp": [
            (
                "  V v;\n  std::memcpy(&v, from, sizeof v);\n  return v;",
                "  if (planted(4)) return *(const V*)from;\n  V v;\n  std::memcpy(&v, from, sizeof v);\n  return v;",
            )
        ],
    },
}


# Where threads meet does not follow from what a register holds.
@pytest.mark.parametrize(
    ("sanitizer", "instructions"),
    [("threads", "baseline"), *(("memory", instructions) for instructions in sanitized.INSTRUCTIONS)],
)
def test_silent(sanitizer, instructions, tmp_path):
    if sanitized.lacks(instructions):
        pytest.skip(f"this processor has no {instructions}")
    done = sanitized.run(sanitized.built(tmp_path, sanitizer, instructions))
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 10_000
    assert not done.stderr


@pytest.mark.parametrize(
    ("sanitizer", "bugs"),
    [
        ("threads", {"shared scratch": (1, "data race"), "shares that overlap": (2, "data race")}),
        ("memory", {"beyond the end": (3, "heap-buffer-overflow"), "alignment": (4, "misaligned address")}),
    ],
    ids=["threads", "memory"],
)
def test_planted(sanitizer, bugs, tmp_path):
    driver = sanitized.built(tmp_path, sanitizer, changes=PLANTED[sanitizer])
    for name, (bug, symptom) in bugs.items():
        done = sanitized.run(driver, bug)
        assert done.returncode != 0, name
        assert symptom in done.stderr, name
