"""Steering, with or without the norm that reads the stream next: one program a row, the row in registers."""

import triton.language as tl

from .norm import normalised
from .paths import kernel
from .row_update import steered, table_row
from .rows import added_row, row_offset


@kernel("x", "out", "directions", "dim", "outer_stride", "inner_stride")
def steer_kernel(
    x,
    out,
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
    dim,
    rows,
    n_directions,
    programs,
    spread,
    slots,
    line,
    flag_line,
    in_place,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`out = steer(x)`; in place only rows that change are written, elsewhere a row's own bits are copied."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    fits = at < dim
    here = row_offset(n, inner, outer_stride, inner_stride)
    there = tl.where(in_place != 0, here, n * dim)
    bank = (directions, n_directions, dim)
    table = (direction, strength, low, high, rotate, preserve_norm, relative, slots, line, flag_line)
    row = table_row(token_row, n, rows, spread, programs)
    raw = tl.load(x + here + at, mask=fits, other=0.0)
    y = raw.to(tl.float32)
    changed = row < -1
    if row >= 0:
        y, changed = steered(y, at, fits, row, bank, table, scale, SLOTS)
    if changed | (in_place == 0):
        tl.store(out + there + at, tl.where(changed, y.to(raw.dtype), raw), mask=fits)


@kernel(
    "x",
    "residual",
    "normed",
    "weight",
    "directions",
    "dim",
    "outer_stride",
    "inner_stride",
    "residual_outer_stride",
    "residual_inner_stride",
)
def steer_rms_norm_kernel(
    x,
    residual,
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
    has_residual,
    inner,
    outer_stride: tl.int64,
    inner_stride: tl.int64,
    residual_inner,
    residual_outer_stride: tl.int64,
    residual_inner_stride: tl.int64,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`x = steer(x + residual)`, rounded once, and `normed = rms_norm(x)` of the rounded row."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    fits = at < dim
    here = x + row_offset(n, inner, outer_stride, inner_stride)
    other = residual + row_offset(n, residual_inner, residual_outer_stride, residual_inner_stride)
    bank = (directions, n_directions, dim)
    table = (direction, strength, low, high, rotate, preserve_norm, relative, slots, line, flag_line)
    row = table_row(token_row, n, rows, spread, programs)
    _, y = added_row(here, other, has_residual, at, dim)
    w = tl.load(weight + at, mask=fits, other=0.0).to(tl.float32)  # on its way while the row is steered
    raw = y.to(x.dtype.element_ty)  # the row's own bits need not be kept: unchanged, they are not written
    changed = row < -1
    if row >= 0:
        y, changed = steered(y, at, fits, row, bank, table, scale, SLOTS)
    stream = tl.where(changed, y.to(raw.dtype), raw)
    if changed | (has_residual != 0):
        tl.store(here + at, stream, mask=fits)
    out = normalised(stream.to(tl.float32), w + weight_offset, eps, dim)
    tl.store(normed + n * dim + at, out.to(raw.dtype), mask=fits)
