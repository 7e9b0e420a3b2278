"""Rows too long for registers, read in blocks: sums first, in float64, then y = α·x + Σ β_j v_j.

A row is read once for its length, once more for each used slot and once to be written (and, with a
norm, once more after that); all but the first read come from the cache. Float64 sums make up for
norms that here can only be differences of sums, and need no scaling.
"""

import triton
import triton.language as tl

from .paths import kernel
from .row_update import direction_row, table_row
from .rows import added_row, element, row_offset
from .solve import added, inverse_gram, keep_orthogonal, turn


@triton.jit
def row_sums(x, residual, has_residual, v, dim, BLOCK: tl.constexpr):
    """`(<x, v>, ‖v‖²)`."""
    p = tl.zeros([BLOCK], dtype=tl.float64)
    square = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, dim, BLOCK):
        at = start + tl.arange(0, BLOCK)
        fits = at < dim
        _, row = added_row(x, residual, has_residual, at, dim)
        w = tl.load(v + at, mask=fits, other=0.0).to(tl.float64)
        p += row.to(tl.float64) * w
        square += w * w
    return tl.sum(p, axis=0), tl.sum(square, axis=0)


@triton.jit
def square_of(x, residual, has_residual, dim, BLOCK: tl.constexpr):
    """`‖x‖²`."""
    square = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, dim, BLOCK):
        at = start + tl.arange(0, BLOCK)
        _, row = added_row(x, residual, has_residual, at, dim)
        square += row.to(tl.float64) * row.to(tl.float64)
    return tl.sum(square, axis=0)


@triton.jit
def dot_of(v, w, dim, BLOCK: tl.constexpr):
    """`<v, w>` of two directions."""
    dot = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, dim, BLOCK):
        at = start + tl.arange(0, BLOCK)
        fits = at < dim
        a = tl.load(v + at, mask=fits, other=0.0).to(tl.float64)
        dot += a * tl.load(w + at, mask=fits, other=0.0).to(tl.float64)
    return tl.sum(dot, axis=0)


@triton.jit
def coefficients(
    x, residual, has_residual, row, bank, table, scale, SLOTS: tl.constexpr, BLOCK: tl.constexpr
):
    """`(α, β, changed)` of the row update, `β` `[SLOTS]`."""
    directions, n_directions, dim = bank
    direction, strength, low, high, rotate, preserve_norm, relative, slots, line, flag_line = table
    i = tl.arange(0, SLOTS)
    first = row * line
    square = square_of(x, residual, has_residual, dim, BLOCK)
    norm = tl.sqrt(square)
    unit = scale * tl.where(tl.load(relative + row * flag_line) != 0, norm, 1.0)
    preserve = tl.load(preserve_norm + row * flag_line)
    p = tl.zeros([SLOTS], dtype=tl.float64)
    b = tl.zeros([SLOTS], dtype=tl.float64)
    gram = tl.zeros([SLOTS, SLOTS], dtype=tl.float64)
    a = 1.0 + norm * 0.0
    for s in range(slots):
        k = tl.load(direction + first + s)
        if (k >= 0) & (k < n_directions):
            v = directions + k.to(tl.int64) * dim
            dot, size = row_sums(x, residual, has_residual, v, dim, BLOCK)
            more = added(
                dot, unit, tl.load(strength + first + s), tl.load(low + first + s), tl.load(high + first + s)
            )
            angle = tl.load(rotate + first + s)
            if angle != 0:
                across = tl.sqrt(tl.maximum(square - dot * dot / size, 0.0))
                stay, towards = turn(dot / tl.sqrt(size), across, norm, tl.sqrt(size), angle)
                a += stay
                more += towards
            p = tl.where(i == s, dot, p)
            b = tl.where(i == s, more, b)
            if preserve != 0:
                for t in range(s + 1):
                    other = tl.load(direction + first + t)
                    if (other >= 0) & (other < n_directions):
                        dot = dot_of(v, directions + other.to(tl.int64) * dim, dim, BLOCK)
                        here = ((i[:, None] == s) & (i[None, :] == t)) | (
                            (i[:, None] == t) & (i[None, :] == s)
                        )
                        gram = tl.where(here, dot, gram)
    changed = (tl.max((b != 0).to(tl.int32), axis=0) != 0) | (a != 1)
    alpha = a
    beta = b
    if preserve == 1:
        after = a * a * square + 2 * a * tl.sum(b * p, axis=0)
        after += tl.sum(tl.sum(gram * b[None, :], axis=1) * b, axis=0)
        kept = tl.where(after > 0, tl.sqrt(square / tl.where(after > 0, after, 1.0)), 1.0)
        alpha = a * kept
        beta = b * kept
    elif preserve == 2:
        share = tl.sum(inverse_gram(gram, slots, SLOTS) * p[None, :], axis=1)
        inside = a * share + b
        inside_square = tl.sum(tl.sum(gram * inside[None, :], axis=1) * inside, axis=0)
        rest_square = tl.maximum(square - tl.sum(share * p, axis=0), 0.0)
        shrink, alpha = keep_orthogonal(norm, tl.sqrt(inside_square), tl.sqrt(rest_square))
        beta = shrink * inside - alpha * share
    return alpha, beta, changed


@kernel(
    "x",
    "residual",
    "out",
    "normed",
    "weight",
    "directions",
    "dim",
    "outer_stride",
    "inner_stride",
    "residual_outer_stride",
    "residual_inner_stride",
)
def steer_long_kernel(
    x,
    residual,
    out,
    normed,
    weight,
    directions,
    direction,
    strength,
    low,
    high,
    rotate,
    preserve_norm,
    relative,
    token_row,
    scale,
    eps,
    weight_offset,
    dim,
    rows,
    n_directions,
    programs,
    spread,
    slots,
    line,
    flag_line,
    in_place,
    has_residual,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    residual_inner,
    residual_outer_stride: tl.int64,
    residual_inner_stride: tl.int64,
    NORM: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`steer` and `steer_rms_norm` of long rows; without NORM, `normed` and `weight` are not read."""
    n = tl.program_id(0).to(tl.int64)
    offset = row_offset(n, inner, outer_stride, inner_stride)
    here = x + offset
    there = out + tl.where(in_place != 0, offset, n * dim)
    other = residual + row_offset(n, residual_inner, residual_outer_stride, residual_inner_stride)
    bank = (directions, n_directions, dim)
    table = (direction, strength, low, high, rotate, preserve_norm, relative, slots, line, flag_line)
    row = table_row(token_row, n, rows, spread, programs)
    alpha = tl.full([], 1.0, dtype=tl.float64)
    beta = tl.zeros([SLOTS], dtype=tl.float64)
    changed = row < -1
    if row >= 0:
        alpha, beta, changed = coefficients(here, other, has_residual, row, bank, table, scale, SLOTS, BLOCK)
    after = tl.zeros([BLOCK], dtype=tl.float64)
    for start in range(0, dim, BLOCK):
        at = start + tl.arange(0, BLOCK)
        fits = at < dim
        raw, wide = added_row(here, other, has_residual, at, dim)
        if changed:
            y = alpha * wide.to(tl.float64)
            for s in range(slots):
                v = direction_row(bank, tl.load(direction + row * line + s), at, fits)
                y += element(beta, s) * v.to(tl.float64)
            raw = y.to(tl.float32).to(raw.dtype)
        if changed | (in_place == 0) | (has_residual != 0):
            tl.store(there + at, raw, mask=fits)
        stored = raw.to(tl.float64)
        after += stored * stored
    if NORM:
        inverse = 1.0 / tl.sqrt(tl.sum(after, axis=0) / dim + eps)
        tl.debug_barrier()  # what other threads of the program stored is read below
        for start in range(0, dim, BLOCK):
            at = start + tl.arange(0, BLOCK)
            fits = at < dim
            stream = tl.load(there + at, mask=fits, other=0.0)
            w = tl.load(weight + at, mask=fits, other=0.0).to(tl.float32) + weight_offset
            y = (stream.to(tl.float64) * inverse).to(tl.float32) * w
            tl.store(normed + n * dim + at, y.to(stream.dtype), mask=fits)


@kernel("x", "out", "weight", "dim", "outer_stride", "inner_stride")
def rms_norm_long_kernel(
    x,
    out,
    weight,
    eps,
    weight_offset,
    dim,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    BLOCK: tl.constexpr,
):
    """`out = rms_norm(x)` of long rows, read twice."""
    n = tl.program_id(0).to(tl.int64)
    here = x + row_offset(n, inner, outer_stride, inner_stride)
    inverse = 1.0 / tl.sqrt(square_of(here, here, 0, dim, BLOCK) / dim + eps)
    for start in range(0, dim, BLOCK):
        at = start + tl.arange(0, BLOCK)
        fits = at < dim
        raw = tl.load(here + at, mask=fits, other=0.0)
        w = tl.load(weight + at, mask=fits, other=0.0).to(tl.float32) + weight_offset
        y = (raw.to(tl.float64) * inverse).to(tl.float32) * w
        tl.store(out + n * dim + at, y.to(raw.dtype), mask=fits)
