"""The root-mean-square norm: one program a row, the row in registers."""

import triton
import triton.language as tl

from .paths import kernel
from .rows import power_of_two, row_offset


@triton.jit
def normalised(x, weight, eps, dim):
    """`x / sqrt(mean(x²) + eps) · weight`, with the squares taken near 1."""
    down, _ = power_of_two(tl.max(tl.abs(x), axis=0))
    z = x * down
    root = tl.sqrt(tl.sum(z * z, axis=0) / dim + eps * down * down)
    return z * (1.0 / root) * weight


@kernel("x", "out", "weight", "dim", "outer_stride", "inner_stride")
def rms_norm_kernel(
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
    """`out = rms_norm(x)`."""
    n = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    fits = at < dim
    raw = tl.load(x + row_offset(n, inner, outer_stride, inner_stride) + at, mask=fits, other=0.0)
    w = tl.load(weight + at, mask=fits, other=0.0).to(tl.float32)
    y = normalised(raw.to(tl.float32), w + weight_offset, eps, dim)
    tl.store(out + n * dim + at, y.to(raw.dtype), mask=fits)
