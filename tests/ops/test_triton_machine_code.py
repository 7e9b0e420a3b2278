"""The machine code of the Triton kernels, compiled without a GPU: no spills, 16 bytes at a time, room for warps."""

import pytest

from emosteer.benchmarks.devices import ARCHITECTURES

pytest.importorskip("triton")
from emosteer.kernels.survey import Pick, survey
from emosteer.kernels.variants import DTYPES, WIDTHS, names

# Threads that a multiprocessor holds at once, at least; what `emosteer bench static` makes of them is the table's.
RESIDENT = {"steer": 384, "rms_norm": 1024, "project": 256, "moments": 256}
LONG = 256  # rows read in blocks, with sums in float64
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
# Every kernel once, and one of them on every target.
REPRESENTATIVE = [
    Pick(name, "bfloat16", 4096, "sm_90")
    for name in (
        "steer_ (1 slot, dense)",
        "steer (4 slots, token_row)",
        "steer_rms_norm_ (1 slot, dense, residual)",
        "rms_norm",
        "project (few)",
        "project (many, center, cosine)",
        "project_extremes_ (many, token_row)",
        "moments (sums and centred rows, grouped)",
        "moments (triangle)",
    )
] + [
    Pick("steer_ (1 slot, dense)", dtype, dim, target)
    for dtype, dim, target in (
        ("float16", 576, "sm_80"),
        ("float32", 8192, "sm_90"),
        ("bfloat16", 8192, "sm_100"),
        ("bfloat16", 16384, "sm_90"),
        ("bfloat16", 4096, "gfx942"),
    )
]
REPRESENTATIVE += [
    Pick(name, "bfloat16", 16384, "sm_90")
    for name in ("steer_rms_norm_ (4 slots, token_row, residual)", "rms_norm")
]
REPRESENTATIVE.append(Pick("project (many)", "float32", 4096, "sm_100"))


def check(pick, found):
    assert found.spills == 0, f"{pick} spills {found.spills} bytes"
    kind = next(k for k in RESIDENT if pick.name.startswith(k))
    if "gfx" not in pick.target:
        held = ARCHITECTURES[pick.target].resident_threads(found.registers, found.shared, found.threads)
        least = RESIDENT[kind] if pick.dim <= 8192 else LONG
        assert held >= least, f"{pick}: {found.registers} registers leave room for {held} threads"
    if kind in ("steer", "rms_norm"):
        rows = 1 if "rms_norm" not in pick.name else 2
        assert found.wide_loads >= 1 + rows
        assert found.wide_stores >= 1
        assert found.other_stores == 0
    if kind == "moments":
        assert found.wide_loads >= 1
    if pick.name.startswith("project"):
        assert found.wide_loads >= 2


def test_representative_variants():
    for pick, found in survey(REPRESENTATIVE).items():
        check(pick, found)


# Every kind of call on one target of each vendor, and every width and dtype of the row kernels on the others.
EVERY = [Pick(name, "bfloat16", 4096, target) for target in ("sm_90", "gfx942") for name in names(4096)] + [
    Pick(name, str(dtype).removeprefix("torch."), dim, target)
    for target in ("sm_80", "sm_100")
    for dtype in DTYPES
    for dim in WIDTHS
    for name in ("steer_ (4 slots, token_row)", "steer_rms_norm_ (4 slots, dense, residual)", "rms_norm")
]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_variant(target):
    for pick, found in survey(pick for pick in EVERY if pick.target == target).items():
        check(pick, found)
