"""Projections of rows on directions, a tile of rows against a tile of directions at a time.

Products are taken on tensor cores with float32's digits (`capability.precision`); the centre is taken off
before, so that no large sums cancel. Few rows make few tiles, each a long way through the columns: there the
columns are split between programs, and a second kernel adds the parts up.
"""

import triton
import triton.language as tl

from .paths import kernel
from .row_update import table_row
from .rows import row_offset


@triton.jit
def scores_of(
    x,
    center,
    has_center,
    bank,
    n,
    k,
    rows,
    strides,
    begin,
    end,
    COSINE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`[BLOCK_N, BLOCK_K]` float32 scores of the rows `n` on the directions `k`.

    `bank` is `(directions, n_directions, dim)`, `strides` those of `row_offset`; columns `[begin, end)` count.

    Cosines keep three sums of squares, of the row and of the row scaled up and down, and use the one
    that neither overflowed nor vanished.
    """
    directions, n_directions, dim = bank
    inner, outer_stride, inner_stride = strides
    here = x + row_offset(n, inner, outer_stride, inner_stride)
    there = directions + k.to(tl.int64) * dim
    scores = tl.zeros([BLOCK_N, BLOCK_K], dtype=tl.float32)
    square = tl.zeros([BLOCK_N], dtype=tl.float32)
    large = tl.zeros([BLOCK_N], dtype=tl.float32)
    small = tl.zeros([BLOCK_N], dtype=tl.float32)
    for start in range(begin, end, BLOCK_D):
        at = start + tl.arange(0, BLOCK_D)
        fits = at < dim
        tile = tl.load(here[:, None] + at[None, :], mask=(n < rows)[:, None] & fits[None, :], other=0.0)
        middle = tl.load(center + at, mask=at < dim * has_center, other=0.0)
        tile = tile.to(tl.float32) - middle[None, :]
        v = tl.load(there[:, None] + at[None, :], mask=(k < n_directions)[:, None] & fits[None, :], other=0.0)
        scores = tl.dot(tile, tl.trans(v), scores, input_precision=PRECISION)
        if COSINE:
            square += tl.sum(tile * tile, axis=1)
            shrunk = tile * 5.421010862427522e-20  # 2^-64
            large += tl.sum(shrunk * shrunk, axis=1)
            grown = tile * 1.8446744073709552e19  # 2^64
            small += tl.sum(grown * grown, axis=1)
    if COSINE:
        norm = tl.where(
            square > 1e30,
            tl.sqrt(large) * 1.8446744073709552e19,
            tl.where(square < 1e-30, tl.sqrt(small) * 5.421010862427522e-20, tl.sqrt(square)),
        )
        scores = tl.where((norm == 0)[:, None], scores * 0.0, scores / norm[:, None])
    return scores


@kernel("x", "directions", "center", "dim", "outer_stride", "inner_stride")
def project_kernel(
    x,
    directions,
    center,
    scores,
    rows,
    n_directions,
    dim,
    has_center,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    COSINE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`scores[n, k] = <x_n − center, v_k>`, over `‖x_n − center‖` for cosines."""
    n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    bank = (directions, n_directions, dim)
    strides = (inner, outer_stride, inner_stride)
    found = scores_of(
        x, center, has_center, bank, n, k, rows, strides, 0, dim, COSINE, BLOCK_N, BLOCK_K, BLOCK_D, PRECISION
    )
    mask = (n < rows)[:, None] & (k < n_directions)[None, :]
    tl.store(scores + n[:, None] * n_directions + k[None, :], found, mask=mask)


@kernel("x", "directions", "center", "dim", "outer_stride", "inner_stride")
def project_extremes_kernel(
    x,
    directions,
    center,
    maximum,
    total,
    token_row,
    rows,
    spread,
    programs,
    n_directions,
    dim,
    has_center,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    COSINE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The same scores, folded into a maximum and a sum for each table row; they are never written out.

    A tile whose tokens all belong to one row is folded first: one atomic a direction for BLOCK_N tokens.
    """
    n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    bank = (directions, n_directions, dim)
    strides = (inner, outer_stride, inner_stride)
    found = scores_of(
        x, center, has_center, bank, n, k, rows, strides, 0, dim, COSINE, BLOCK_N, BLOCK_K, BLOCK_D, PRECISION
    )
    row = table_row(token_row, n, rows, spread, programs)
    counted = row >= 0
    top = tl.where(counted[:, None] & (found == found), found, float("-inf"))
    sums = tl.where(counted[:, None], found, 0.0)
    last = tl.max(tl.where(counted, row, -1), axis=0)
    first = tl.min(tl.where(counted, row, programs), axis=0)
    if first == last:
        one = last * n_directions + k
        tl.atomic_max(maximum + one, tl.max(top, axis=0), mask=k < n_directions)
        tl.atomic_add(total + one, tl.sum(sums, axis=0), mask=k < n_directions)
    else:
        each = tl.where(counted, row, 0)[:, None] * n_directions + k[None, :]
        mask = counted[:, None] & (k < n_directions)[None, :]
        tl.atomic_max(maximum + each, top, mask=mask)
        tl.atomic_add(total + each, sums, mask=mask)


@kernel("x", "directions", "center", "dim", "outer_stride", "inner_stride", "span")
def project_parts_kernel(
    x,
    directions,
    center,
    parts,
    rows,
    n_directions,
    dim,
    span,
    has_center,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`parts[i, n, k] = <x_n − center, v_k>` over the columns `[i·span, (i + 1)·span)`."""
    n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    i = tl.program_id(2)
    bank = (directions, n_directions, dim)
    strides = (inner, outer_stride, inner_stride)
    begin = i * span
    end = tl.minimum(begin + span, dim)
    found = scores_of(
        x,
        center,
        has_center,
        bank,
        n,
        k,
        rows,
        strides,
        begin,
        end,
        False,
        BLOCK_N,
        BLOCK_K,
        BLOCK_D,
        PRECISION,
    )
    there = (i.to(tl.int64) * rows + n)[:, None] * n_directions + k[None, :]
    tl.store(parts + there, found, mask=(n < rows)[:, None] & (k < n_directions)[None, :])


@kernel("x", "center", "dim", "outer_stride", "inner_stride")
def combine_parts_kernel(
    x,
    center,
    parts,
    scores,
    maximum,
    total,
    token_row,
    rows,
    spread,
    programs,
    n_directions,
    dim,
    splits,
    has_center,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    COSINE: tl.constexpr,
    EXTREMES: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`scores[n] = Σ_i parts[i, n]`, over `‖x_n − center‖` for cosines; EXTREMES folds them instead. A program a row.

    The norm is taken in float64, which holds the square of every float32.
    """
    n = tl.program_id(0).to(tl.int64)
    norm = tl.full([], 1.0, dtype=tl.float32)
    if COSINE:
        here = x + row_offset(n, inner, outer_stride, inner_stride)
        square = tl.zeros([BLOCK], dtype=tl.float64)
        for start in range(0, dim, BLOCK):
            at = start + tl.arange(0, BLOCK)
            row = tl.load(here + at, mask=at < dim, other=0.0).to(tl.float32)
            row -= tl.load(center + at, mask=at < dim * has_center, other=0.0)
            square += row.to(tl.float64) * row.to(tl.float64)
        norm = tl.sqrt(tl.sum(square, axis=0)).to(tl.float32)
    into = n
    limit = n_directions
    if EXTREMES:
        into = table_row(token_row, n, rows, spread, programs)
        limit = tl.where(into >= 0, n_directions, 0)
    i = tl.arange(0, BLOCK_I)  # all parts at once: no load waits for another
    for first in range(0, limit, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        at = (i.to(tl.int64) * rows + n)[:, None] * n_directions + k[None, :]
        mask = (i < splits)[:, None] & (k < n_directions)[None, :]
        found = tl.sum(tl.load(parts + at, mask=mask, other=0.0), axis=0)
        if COSINE:
            found = tl.where(norm == 0, found * 0.0, found / norm)
        if EXTREMES:
            each = into * n_directions + k
            top = tl.where(found == found, found, float("-inf"))
            tl.atomic_max(maximum + each, top, mask=k < n_directions)
            tl.atomic_add(total + each, found, mask=k < n_directions)
        else:
            tl.store(scores + n * n_directions + k, found, mask=k < n_directions)
