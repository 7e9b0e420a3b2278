"""Steering, with or without the norm that reads the stream next: one program a row, the row in registers."""

import triton
import triton.language as tl

from .norm import normalised
from .row_update import steered, table_row
from .rows import row_offset

# Numbers that change from call to call: no variant of their own.
LOOSE = ["n_directions", "programs", "spread", "slots", "inner"]


@triton.jit(do_not_specialize=LOOSE)
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
    n_directions,
    programs,
    spread,
    slots,
    inner,
    outer_stride,
    inner_stride,
    DENSE: tl.constexpr,
    IN_PLACE: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`out = steer(x)`; in place only rows that change are written, elsewhere a row's own bits are copied."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    fits = at < dim
    here = x + row_offset(n, inner, outer_stride, inner_stride) + at
    row = table_row(token_row, n, spread, programs, DENSE)
    raw = tl.load(here, mask=fits, other=0.0)
    y = raw.to(tl.float32)
    changed = row < -1
    if row >= 0:
        y, changed = steered(
            y,
            at,
            fits,
            row,
            directions,
            n_directions,
            dim,
            direction,
            strength,
            low,
            high,
            rotate,
            preserve_norm,
            relative,
            slots,
            scale,
            SLOTS,
        )
    if IN_PLACE:
        if changed:
            tl.store(here, y.to(raw.dtype), mask=fits)
    else:
        tl.store(out + n * dim + at, tl.where(changed, y.to(raw.dtype), raw), mask=fits)


@triton.jit(do_not_specialize=[*LOOSE, "residual_inner"])
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
    n_directions,
    programs,
    spread,
    slots,
    inner,
    outer_stride,
    inner_stride,
    residual_inner,
    residual_outer_stride,
    residual_inner_stride,
    DENSE: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`x = steer(x + residual)`, rounded once, and `normed = rms_norm(x)` of the rounded row."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    fits = at < dim
    here = x + row_offset(n, inner, outer_stride, inner_stride) + at
    row = table_row(token_row, n, spread, programs, DENSE)
    raw = tl.load(here, mask=fits, other=0.0)
    y = raw.to(tl.float32)
    if RESIDUAL:
        other = residual + row_offset(n, residual_inner, residual_outer_stride, residual_inner_stride) + at
        y += tl.load(other, mask=fits, other=0.0).to(tl.float32)
        raw = y.to(raw.dtype)
    changed = row < -1
    if row >= 0:
        y, changed = steered(
            y,
            at,
            fits,
            row,
            directions,
            n_directions,
            dim,
            direction,
            strength,
            low,
            high,
            rotate,
            preserve_norm,
            relative,
            slots,
            scale,
            SLOTS,
        )
    stream = tl.where(changed, y.to(raw.dtype), raw)
    if RESIDUAL:
        tl.store(here, stream, mask=fits)
    else:
        if changed:
            tl.store(here, stream, mask=fits)
    w = tl.load(weight + at, mask=fits, other=0.0).to(tl.float32)
    out = normalised(stream.to(tl.float32), w + weight_offset, eps, dim)
    tl.store(normed + n * dim + at, out.to(raw.dtype), mask=fits)
