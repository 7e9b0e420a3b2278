"""Streaming moments: sums by group in float64, and the lower triangle of the second moment by tiles."""

import triton
import triton.language as tl

from .paths import kernel
from .rows import row_offset


@kernel("x", "shift", "total", "centred", "dim", "outer_stride", "inner_stride")
def group_sums_kernel(
    x,
    group,
    weight,
    shift,
    total,
    centred,
    started,
    rows,
    groups,
    dim,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    GROUPED: tl.constexpr,
    PILOT: tl.constexpr,
    CENTRED: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """`total[g] += Σ w (x − shift)` over the tokens of group g; `centred = sqrt(w)·(x − shift)`.

    A pilot takes the plain sum of everything, and only where `started` does not hold: that is how the
    shift is found without asking the device. Tokens of weight 0 are not read into any sum. Consecutive
    tokens of one group are summed before they are added atomically.
    """
    if PILOT:  # noqa: SIM102  known when compiled, unlike the flag
        if tl.load(started) != 0:
            return
    at = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    fits = at < dim
    middle = tl.zeros([BLOCK_D], dtype=tl.float64)
    if not PILOT:
        middle = tl.load(shift + at, mask=fits, other=0.0)
    begin = tl.program_id(1).to(tl.int64) * (TILES * BLOCK_N)
    kept = tl.zeros([BLOCK_D], dtype=tl.float64)
    current = tl.full([], -1, dtype=tl.int32)
    for tile in range(TILES):
        n = begin + tile * BLOCK_N + tl.arange(0, BLOCK_N)
        w = tl.load(weight + n, mask=n < rows, other=0.0)
        if GROUPED:
            g = tl.load(group + n, mask=n < rows, other=-1)
        else:
            g = tl.where(n < rows, 0, -1)
        counted = (w > 0) & (g >= 0) & (g < groups)
        here = x + row_offset(n, inner, outer_stride, inner_stride)
        mask = counted[:, None] & fits[None, :]
        wide = tl.load(here[:, None] + at[None, :], mask=mask, other=0.0).to(tl.float32).to(tl.float64)
        apart = tl.where(mask, wide - middle[None, :], 0.0)
        if CENTRED:
            there = n[:, None] * dim + at[None, :]
            root = tl.sqrt(w.to(tl.float64))
            rows_fit = (n < rows)[:, None] & fits[None, :]
            tl.store(centred + there, (root[:, None] * apart).to(tl.float32), mask=rows_fit)
        apart = apart * w[:, None]
        last = tl.max(tl.where(counted, g, -1), axis=0)
        first = tl.min(tl.where(counted, g, groups), axis=0)
        if last >= 0:
            if (first != last) | (last != current):
                if current >= 0:
                    tl.atomic_add(total + current.to(tl.int64) * dim + at, kept, mask=fits)
                kept = tl.zeros([BLOCK_D], dtype=tl.float64)
                current = tl.full([], -1, dtype=tl.int32)
            if first == last:
                kept += tl.sum(apart, axis=0)
                current = last
            else:
                into = total + tl.where(counted, g, 0).to(tl.int64)[:, None] * dim + at[None, :]
                tl.atomic_add(into, apart, mask=mask)
    if current >= 0:
        tl.atomic_add(total + current.to(tl.int64) * dim + at, kept, mask=fits)


@triton.jit
def centred_tile(x, at, n, counted, shift, dim, inner, outer_stride, inner_stride):
    """`x − shift` on the columns `at` of the tokens `n`, 0 where a token does not count.

    The shift comes off in two float32 parts, which leaves what one float64 subtraction would.
    """
    mask = counted[:, None] & (at < dim)[None, :]
    here = x + row_offset(n, inner, outer_stride, inner_stride)
    wide = tl.load(here[:, None] + at[None, :], mask=mask, other=0.0).to(tl.float32)
    middle = tl.load(shift + at, mask=at < dim, other=0.0)
    large = middle.to(tl.float32)
    small = (middle - large.to(tl.float64)).to(tl.float32)
    return tl.where(mask, (wide - large[None, :]) - small[None, :], 0.0)


@kernel("x", "shift", "scatter", "dim", "outer_stride", "inner_stride")
def scatter_kernel(
    x,
    weight,
    shift,
    scatter,
    rows,
    dim,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`scatter += Σ w (x − shift)(x − shift)ᵀ`, one program a tile on or below the diagonal.

    Tiles are counted row by row: tile p lies in row i with i(i+1)/2 ≤ p. Each product is six bfloat16
    products, which keeps float32's digits, and sums are float32.
    """
    p = tl.program_id(0)
    i = ((tl.sqrt(8.0 * p.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    i = tl.where(i * (i + 1) // 2 > p, i - 1, i)  # the root may be off by one either way
    i = tl.where((i + 1) * (i + 2) // 2 <= p, i + 1, i)
    j = p - i * (i + 1) // 2
    at_i = i * BLOCK_D + tl.arange(0, BLOCK_D)
    at_j = j * BLOCK_D + tl.arange(0, BLOCK_D)
    sums = tl.zeros([BLOCK_D, BLOCK_D], dtype=tl.float32)
    for start in range(0, rows, BLOCK_N):
        n = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
        w = tl.load(weight + n, mask=n < rows, other=0.0)
        left = centred_tile(x, at_i, n, w > 0, shift, dim, inner, outer_stride, inner_stride)
        right = centred_tile(x, at_j, n, w > 0, shift, dim, inner, outer_stride, inner_stride)
        sums = tl.dot(tl.trans(left * w[:, None]), right, sums, input_precision=PRECISION)
    there = scatter + at_i.to(tl.int64)[:, None] * dim + at_j[None, :]
    lower = (at_i[:, None] >= at_j[None, :]) & (at_i < dim)[:, None]
    tl.store(there, tl.load(there, mask=lower, other=0.0) + sums, mask=lower)
