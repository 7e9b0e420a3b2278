"""Moments: sums of groups, and the second moment by its lower triangle."""

from __future__ import annotations

import triton
from torch import Tensor

from ..capability import INTERPRETED
from ..moments import group_sums_kernel, scatter_kernel
from .plan import PRECISION, Launch, Rows, over_rows, size


def group_sums(
    x: Tensor,
    rows: Rows,
    group: Tensor | None,
    weight: Tensor,
    total: Tensor,
    *,
    shift: Tensor | None = None,
    started: Tensor | None = None,
    centred: Tensor | None = None,
) -> Launch:
    """With `started` the pilot: one sum of everything, and nothing at all where the flag is set."""
    n, dim = size(x)
    constants = {"BLOCK_N": 16, "BLOCK_D": 128, "TILES": 8}
    if INTERPRETED:  # which takes as long for a large tile as for a small one
        constants = {"BLOCK_N": 128, "BLOCK_D": 1024, "TILES": 2}
    grid = over_rows(triton.cdiv(dim, constants["BLOCK_D"]), n, constants["BLOCK_N"] * constants["TILES"])
    arguments = {
        "x": x,
        "group": group,
        "weight": weight,
        "shift": shift,
        "total": total,
        "centred": centred,
        "started": started,
        "rows": n,
        "groups": total.shape[0],
        "dim": dim,
        **rows.named(),
    }
    flags = {"GROUPED": group is not None, "PILOT": started is not None, "CENTRED": centred is not None}
    return Launch(group_sums_kernel.path(arguments), grid, arguments, constants | flags, 4, 256)


def scatter(x: Tensor, rows: Rows, weight: Tensor, shift: Tensor, scatter: Tensor) -> Launch:
    n, dim = size(x)
    arguments = {
        "x": x,
        "weight": weight,
        "shift": shift,
        "scatter": scatter,
        "rows": n,
        "dim": dim,
        **rows.named(),
    }
    # Addresses of what is not aligned take registers; a tile of half the side leaves them.
    block = 128 if scatter_kernel.fits(arguments) else 64
    constants = {"BLOCK_N": 128 if INTERPRETED else 16, "BLOCK_D": block, "PRECISION": PRECISION}
    side = triton.cdiv(dim, block)
    grid = (side * (side + 1) // 2,)
    return Launch(scatter_kernel.path(arguments), grid, arguments, constants, 8, 256)
