"""The maximum and the sum of projections over tokens: monitoring that never holds a score for every token."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from . import backends, checks, reference

# Rows projected at a time where no kernel folds them as it goes.
_CHUNK_ROWS = 4096


def project_extremes_(
    maximum: Tensor,
    total: Tensor,
    x: Tensor,
    directions: Tensor,
    token_row: Tensor | None = None,
    *,
    center: Tensor | None = None,
    cosine: bool = False,
) -> None:
    """Fold the projections of tokens into a maximum and a sum for each row of a batch.

        s_nk = project(x, directions)_nk        maximum_rk ← max(maximum_rk, max_{n of row r} s_nk)
                                                total_rk   ← total_rk + Σ_{n of row r} s_nk

    Running over a generation, `total` divided by the number of tokens is the mean score. On a GPU the
    scores are never written out. A NaN score leaves the maximum as it is and makes the sum NaN. Sums of
    one row are added in no fixed order: their last digits may differ from run to run.

    Args:
        maximum: `[R, K]` float32, updated in place; start at −inf.
        total: `[R, K]` float32, updated in place; start at 0.
        x: `[..., D]` float32, bfloat16 or float16, last dimension contiguous.
        directions: `[K, D]` float32, rows of unit length.
        token_row: int32, one entry a row of `x`: the row r it belongs to, −1 for none. None for a dense
            batch: N rows spread evenly over R.
        center, cosine: as in `project`.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or length; the message names the argument.
    """
    run = backends.of(checks.tensor(x).device)
    rows = checks.rows_of(x)
    checks.directions(directions, x)
    k = directions.shape[0]
    for name, into in (("maximum", maximum), ("total", total)):
        _check_result(name, into, k, x)
    if maximum.shape != total.shape:
        raise ValueError(f"maximum has {maximum.shape[0]} rows, total has {total.shape[0]}")
    if token_row is None and rows % maximum.shape[0]:
        raise ValueError(
            f"x has {rows} rows, which do not divide evenly over the {maximum.shape[0]} rows of maximum; "
            f"pass token_row to say which row each token belongs to"
        )
    token_row = checks.index(token_row, "token_row", rows, x)
    center = checks.center(center, x)
    if not rows or not k:
        return
    fold_(run, maximum, total, x, directions, token_row, center, bool(cosine))


def fold_(
    run: ModuleType,
    maximum: Tensor,
    total: Tensor,
    x: Tensor,
    directions: Tensor,
    token_row: Tensor | None,
    center: Tensor | None,
    cosine: bool,
) -> None:
    """`project_extremes_` by a backend's own kernel, or by its `project` and plain torch, without a wait."""
    if hasattr(run, "project_extremes_"):
        run.project_extremes_(maximum, total, x, directions, token_row, center, cosine)
        return
    rows = x.numel() // x.shape[-1]
    where = reference.token_rows(rows, maximum.shape[0], token_row, x.device)
    inside = ((where >= 0) & (where < maximum.shape[0]))[:, None]
    where = where.clamp(0, maximum.shape[0] - 1)
    flat = x.reshape(rows, -1)
    for start in range(0, rows, _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        scores, counted, row = run.project(flat[part], directions, center, cosine), inside[part], where[part]
        total.index_add_(0, row, torch.where(counted, scores, 0.0))
        scores = torch.where(counted & ~scores.isnan(), scores, -torch.inf)
        maximum.scatter_reduce_(0, row[:, None].expand_as(scores), scores, "amax")


def _check_result(name: str, into: Tensor, k: int, x: Tensor) -> None:
    checks.tensor(into, name)
    if into.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {str(into.dtype).removeprefix('torch.')}")
    if into.ndim != 2 or into.shape[1] != k or not into.shape[0]:
        raise ValueError(f"{name} must be [R, {k}], a column for each direction, got {list(into.shape)}")
    if into.device != x.device:
        raise ValueError(f"{name} is on {into.device}, x is on {x.device}")
    if not into.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {into.stride()}; call .contiguous() first")
