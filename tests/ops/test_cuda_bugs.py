"""The host build finds what it is there to find: each bug, planted in a copy of the kernels, fails the checks."""

import os
import subprocess
import sys

import pytest

from .host import build

# All in one build, asleep.
PLANTED = {
    "packets.cuh": [
        ("if (at + i < dim) narrow(", "if (at + i < dim + planted(1)) narrow("),
        ("if (aligned && at + kCount <= dim)", "if ((aligned || planted(10)) && at + kCount <= dim)"),
    ],
    "rows.cuh": [
        ("    __syncthreads();\n", "    if (!planted(2)) __syncthreads();\n"),
        ("    turn ^= 1;\n", "    if (!planted(3)) turn ^= 1;\n    if (planted(5) && lane) __syncwarp();\n"),
        ("value, distance);", "value, distance, planted(4) ? kWarp / 2 : kWarp);"),
        ("cells + turn * warps * kWarp", "cells + (planted(9) ? 2 : turn) * warps * kWarp"),
    ],
    "norm.cuh": [
        ("if (n >= args.count) return;", "if (n >= args.count || (planted(6) && threadIdx.x == 40)) return;")
    ],
    "program.cuh": [
        (
            "program.direction >= 0 && program.direction < n_directions",
            "planted(7) || (program.direction >= 0 && program.direction < n_directions)",
        ),
        (
            "if (row < 0 || row >= table.rows) return program;",
            "if (!planted(8) && (row < 0 || row >= table.rows)) return program;",
        ),
    ],
}
BUGS = {
    "a store one past the end": (1, "AssertionError: wrote be"),
    "no barrier before shared memory is read": (2, "worst excess nan"),
    # Warps that read other sums take other branches.
    "sums that overwrite what others still read": (3, "for others that never come"),
    "a shuffle over half a warp": (4, "worst excess"),
    "a barrier of the warp that one lane skips": (5, "for others that never come"),
    "a thread that returns before the barrier": (6, "has returned"),
}
SEEN = {
    "direction": (7, "AddressSanitizer"),
    "table row": (8, "AddressSanitizer"),
    "shared memory": (9, "AddressSanitizer"),
    "alignment": (10, "misaligned address"),
}
first, *others = BUGS


def run(module, *, bug=0, order=0, preload=()):
    environment = os.environ | {
        "HOST_BUG": str(bug),
        "HOST_ORDER": str(order),
        "LD_PRELOAD": " ".join(preload),
    }
    environment["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0"
    command = [sys.executable, "-m", "tests.ops.host.checks", str(module)]
    return subprocess.run(command, env=environment, cwd=build.ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("bug", [first, *(pytest.param(bug, marks=pytest.mark.full) for bug in others)])
def test_planted(bug):
    number, symptom = BUGS[bug]
    order = 7 if "overwrite" in bug else 0  # a race shows where threads run ahead of each other
    done = run(build.built(flags=("-O1",), changes=PLANTED), bug=number, order=order)
    assert done.returncode == 1
    assert symptom in done.stderr


@pytest.mark.full
def test_any_order_of_threads_gives_the_same_bits():
    """By index, from the last, and at random."""
    found = [run(build.built(), order=order) for order in (0, 1, 2)]
    assert [done.returncode for done in found] == [0, 0, 0], "\n".join(done.stderr for done in found)
    assert len({done.stdout for done in found}) == 1


# ---- AddressSanitizer and UndefinedBehaviorSanitizer ------------------------------------------------


def sanitized(changes=None, bug=0, order=0):
    libraries = [
        subprocess.run(
            [*build._compiler(), f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if missing := [path for path in libraries if not os.path.isabs(path)]:
        pytest.skip(
            f"the compiler has no {' and no '.join(missing)} (Debian, Ubuntu: apt-get install libgcc-12-dev)"
        )
    return run(build.built(flags=build.SANITIZE, changes=changes), bug=bug, preload=libraries, order=order)


@pytest.mark.slow
def test_sanitizers_are_silent():
    done = sanitized(order=3)
    assert done.returncode == 0, done.stderr
    assert "every kernel ran" in done.stdout
    assert "runtime error" not in done.stderr


@pytest.mark.slow
@pytest.mark.full
def test_sanitizers_see():
    for name, (bug, symptom) in SEEN.items():
        done = sanitized(PLANTED, bug)
        assert done.returncode != 0, name
        assert symptom in done.stderr, name
