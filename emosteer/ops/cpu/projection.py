"""Projections: a row kernel where they are small, else a matrix product."""

from __future__ import annotations

import torch
from torch import Tensor

from ..precision import whole_float32
from .binding import CODE, _cpu, rows_of

# Up to this many multiply-adds the row kernel beats a matrix product's fixed cost.
SMALL_PROJECTION = 1 << 20
# Rows widened to float32 at a time before a matrix product.
CHUNK_ROWS = 4096


def project(x: Tensor, directions: Tensor, center: Tensor | None, cosine: bool) -> Tensor:
    k, dim = directions.shape
    n = x.numel() // dim
    dots = torch.empty(*x.shape[:-1], k)
    if n * k * dim <= SMALL_PROJECTION:
        view = rows_of(x) or rows_of(x := x.contiguous())
        at = 0 if center is None else center.data_ptr()
        _cpu.project(CODE[x.dtype], view, n, dim, directions.data_ptr(), k, at, cosine, dots.data_ptr(), 0, 0)
        return dots
    rows, flat = x.reshape(-1, dim), dots.view(-1, k)
    if center is None and not cosine and (n <= CHUNK_ROWS or x.dtype == torch.float32):
        # `out` also keeps autocast away, which would round the dots
        with whole_float32("cpu"):
            torch.mm(rows.float(), directions.T, out=flat)
        return dots
    for start in range(0, n, CHUNK_ROWS):
        chunk, norms = _widen(rows[start : start + CHUNK_ROWS], center, cosine)
        part = flat[start : start + CHUNK_ROWS]
        with whole_float32("cpu"):
            torch.mm(chunk, directions.T, out=part)
        if cosine:
            part *= torch.where(norms > 0, norms.reciprocal(), norms)[:, None]
    return dots


def _widen(rows: Tensor, center: Tensor | None, norms: bool) -> tuple[Tensor, Tensor]:
    """`rows − center` in float32 and, if wanted, their norms, from one read."""
    n, dim = rows.shape
    wide, length = torch.empty(n, dim), torch.empty(n if norms else 0)
    at = 0 if center is None else center.data_ptr()
    _cpu.project(
        CODE[rows.dtype],
        rows_of(rows),
        n,
        dim,
        0,
        0,
        at,
        False,
        0,
        wide.data_ptr(),
        length.data_ptr() if norms else 0,
    )
    return wide, length
