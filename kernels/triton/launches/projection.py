"""Projections: tiles of directions against rows, or few rows whose columns are split between programs."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from ..capability import INTERPRETED
from ..project import combine_parts_kernel, project_extremes_kernel, project_kernel, project_parts_kernel
from .plan import LONG_BLOCK, PRECISION, Launch, Rows, over_rows, size, spread_of

# Up to so many rows a projection splits its columns between programs: as many as make `ENOUGH_BLOCKS` (two for each
# multiprocessor of the largest GPUs), of `PART_STEPS` steps at least, so that adding up does not take longer.
FEW_ROWS, ENOUGH_BLOCKS, PART_STEPS, MOST_PARTS = 64, 264, 1 if INTERPRETED else 8, 32
_PARTS = {"BLOCK_N": 16, "BLOCK_K": 64 if INTERPRETED else 16, "BLOCK_D": 1024 if INTERPRETED else 32}


def project(
    x: Tensor, rows: Rows, directions: Tensor, center: Tensor | None, cosine: bool, scores: Tensor
) -> Launch:
    grid, constants, warps, resident = _tiles(x, directions)
    arguments = {
        "x": x,
        "directions": directions,
        "center": directions if center is None else center,
        "has_center": int(center is not None),
        "scores": scores,
        "rows": size(x)[0],
        "n_directions": directions.shape[0],
        "dim": directions.shape[1],
        **rows.named(),
    }
    constants |= {"COSINE": cosine}
    return Launch(project_kernel.path(arguments), grid, arguments, constants, warps, resident, stages=2)


def project_extremes(
    x: Tensor,
    rows: Rows,
    directions: Tensor,
    center: Tensor | None,
    cosine: bool,
    maximum: Tensor,
    total: Tensor,
    token_row: Tensor | None,
) -> Launch:
    grid, constants, warps, resident = _tiles(x, directions)
    n, programs = size(x)[0], maximum.shape[0]
    arguments = {
        "x": x,
        "directions": directions,
        "center": directions if center is None else center,
        "has_center": int(center is not None),
        "maximum": maximum,
        "total": total,
        "rows": n,
        # Never read where tokens are spread evenly, and yet of a type.
        "token_row": maximum.view(torch.int32) if token_row is None else token_row,
        "spread": spread_of(n, programs, token_row),
        "programs": programs,
        "n_directions": directions.shape[0],
        "dim": directions.shape[1],
        **rows.named(),
    }
    constants |= {"COSINE": cosine}
    return Launch(
        project_extremes_kernel.path(arguments), grid, arguments, constants, warps, resident, stages=2
    )


def splits(x: Tensor, directions: Tensor) -> int:
    """Between how many programs the columns of a projection are split; 0 where its rows alone make enough tiles."""
    (n, dim), k = size(x), directions.shape[0]
    if n > FEW_ROWS:
        return 0
    tiles = triton.cdiv(k, _PARTS["BLOCK_K"]) * triton.cdiv(n, _PARTS["BLOCK_N"])
    longest = triton.cdiv(dim, PART_STEPS * _PARTS["BLOCK_D"])
    return max(min(triton.cdiv(ENOUGH_BLOCKS, tiles), longest, MOST_PARTS), 1)


def project_parts(x: Tensor, rows: Rows, directions: Tensor, center: Tensor | None, parts: Tensor) -> Launch:
    """`parts` `[splits, N, K]`, for `combine_parts`."""
    (n, dim), (k, _), block = size(x), directions.shape, _PARTS["BLOCK_D"]
    span = triton.cdiv(triton.cdiv(dim, parts.shape[0]), block) * block
    grid = triton.cdiv(k, _PARTS["BLOCK_K"]), triton.cdiv(n, _PARTS["BLOCK_N"]), parts.shape[0]
    arguments = {
        "x": x,
        "directions": directions,
        "center": directions if center is None else center,
        "has_center": int(center is not None),
        "parts": parts,
        "rows": n,
        "n_directions": k,
        "dim": dim,
        "span": span,
        **rows.named(),
    }
    constants = {**_PARTS, "PRECISION": PRECISION}
    return Launch(project_parts_kernel.path(arguments), grid, arguments, constants, 4, 384, stages=2)


def combine_parts(
    x: Tensor,
    rows: Rows,
    center: Tensor | None,
    cosine: bool,
    parts: Tensor,
    scores: Tensor | None,
    maximum: Tensor | None = None,
    total: Tensor | None = None,
    token_row: Tensor | None = None,
) -> Launch:
    """Into `scores`, or into `maximum` and `total` by `token_row`."""
    n, dim = size(x)
    programs = 1 if maximum is None else maximum.shape[0]
    arguments = {
        "x": x,
        "center": parts if center is None else center,
        "has_center": int(center is not None),
        "parts": parts,
        "scores": parts if scores is None else scores,
        "maximum": parts if maximum is None else maximum,
        "total": parts if total is None else total,
        "token_row": parts.view(torch.int32) if token_row is None else token_row,
        "rows": n,
        "spread": spread_of(n, programs, token_row),
        "programs": programs,
        "n_directions": parts.shape[2],
        "dim": dim,
        "splits": parts.shape[0],
        **rows.named(),
    }
    constants = {"COSINE": cosine, "EXTREMES": scores is None, "BLOCK_K": 128}
    constants |= {"BLOCK_I": MOST_PARTS, "BLOCK": LONG_BLOCK}
    return Launch(combine_parts_kernel.path(arguments), (n,), arguments, constants, 8, 512)


def _tiles(x: Tensor, directions: Tensor) -> tuple[tuple[int, int], dict[str, Any], int, int]:
    """A tile of 64 directions against 64 rows."""
    constants: dict[str, Any] = {
        "BLOCK_N": 64,
        "BLOCK_K": 64,
        "BLOCK_D": 16 if x.element_size() == 4 else 32,  # 64 bytes of a row; more spills on sm_100
        "PRECISION": PRECISION,
    }
    if INTERPRETED:
        constants |= {"BLOCK_D": 1024}
    grid = over_rows(triton.cdiv(directions.shape[0], constants["BLOCK_K"]), size(x)[0], constants["BLOCK_N"])
    return grid, constants, 8, 256
