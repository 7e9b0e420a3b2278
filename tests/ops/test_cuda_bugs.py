"""The host build finds what it is there to find: each bug, planted in a copy of the kernels, fails the checks."""

import os
import subprocess
import sys

import pytest

from .host import build

BUGS = {
    "a store one past the end": (
        {"packets.cuh": ("if (at + i < dim) narrow(", "if (at + i <= dim) narrow(")},
        "AssertionError: wrote be",
    ),
    "no barrier before shared memory is read": (
        {"rows.cuh": ("    __syncthreads();\n", "")},
        "worst excess nan",
    ),
    "sums that overwrite what others still read": (
        {"rows.cuh": ("    turn ^= 1;\n", "")},
        "for others that never come",  # warps that read other sums take other branches
    ),
    "a shuffle over half a warp": (
        {"rows.cuh": ("value, distance);", "value, distance, kWarp / 2);")},
        "worst excess",
    ),
    "a barrier of the warp that one lane skips": (
        {"rows.cuh": ("    turn ^= 1;\n", "    turn ^= 1;\n    if (lane) __syncwarp();\n")},
        "for others that never come",
    ),
    "a thread that returns before the barrier": (
        {"norm.cuh": ("if (n >= args.count) return;", "if (n >= args.count || threadIdx.x == 40) return;")},
        "has returned",
    ),
}


first, *others = BUGS


def run(module, *, order=0, preload=()):
    environment = os.environ | {"HOST_ORDER": str(order), "LD_PRELOAD": " ".join(preload)}
    environment["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0"
    command = [sys.executable, "-m", "tests.ops.host.checks", str(module)]
    return subprocess.run(command, env=environment, cwd=build.ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("bug", [first, *(pytest.param(bug, marks=pytest.mark.full) for bug in others)])
def test_planted(bug):
    changes, symptom = BUGS[bug]
    order = 7 if "overwrite" in bug else 0  # a race shows where threads run ahead of each other
    done = run(build.built(flags=("-O1",), changes=changes), order=order)
    assert done.returncode == 1
    assert symptom in done.stderr


@pytest.mark.full
def test_any_order_of_threads_gives_the_same_bits():
    """By index, from the last, and at random."""
    found = [run(build.built(), order=order) for order in (0, 1, 2)]
    assert [done.returncode for done in found] == [0, 0, 0], "\n".join(done.stderr for done in found)
    assert len({done.stdout for done in found}) == 1


# ---- AddressSanitizer and UndefinedBehaviorSanitizer ------------------------------------------------


def sanitized(changes=None, order=0):
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
    return run(build.built(flags=build.SANITIZE, changes=changes), preload=libraries, order=order)


@pytest.mark.slow
def test_sanitizers_are_silent():
    done = sanitized(order=3)
    assert done.returncode == 0, done.stderr
    assert "every kernel ran" in done.stdout
    assert "runtime error" not in done.stderr


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize(
    ("changes", "symptom"),
    [
        (
            {"program.cuh": ("program.direction >= 0 && program.direction < n_directions", "true")},
            "AddressSanitizer",
        ),
        ({"program.cuh": ("if (row < 0 || row >= table.rows) return program;", "")}, "AddressSanitizer"),
        ({"rows.cuh": ("cells + turn * warps * kWarp", "cells + 2 * warps * kWarp")}, "AddressSanitizer"),
        (
            {"packets.cuh": ("if (aligned && at + kCount <= dim)", "if (at + kCount <= dim)")},
            "misaligned address",
        ),
    ],
    ids=["direction", "table row", "shared memory", "alignment"],
)
def test_sanitizers_see(changes, symptom):
    done = sanitized(changes)
    assert done.returncode != 0
    assert symptom in done.stderr
