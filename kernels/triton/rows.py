"""Rows of a tensor: where they lie, and a scale under which their squares neither overflow nor vanish."""

import triton
import triton.language as tl


@triton.jit
def row_offset(n, inner, outer_stride, inner_stride):
    """The offset of row `n` in elements, int64: row n lies at (n // inner, n % inner) of two strides."""
    n = n.to(tl.int64)
    return (n // inner) * outer_stride + (n % inner) * inner_stride


@triton.jit
def added_row(x, residual, has_residual, at, dim):
    """Elements `at` of a row of `x`, or of `x + residual`: as they are stored, and in float32.

    What is added where there is no residual is −0.0, which changes no number.
    """
    raw = tl.load(x + at, mask=at < dim, other=0.0)
    sums = raw.to(tl.float32)
    sums += tl.load(residual + at, mask=at < dim * has_residual, other=-0.0).to(tl.float32)
    return tl.where(has_residual != 0, sums.to(raw.dtype), raw), sums


@triton.jit
def power_of_two(size):
    """`(down, up)`, exact powers of two with `size·down` in [1, 2) and `down·up = 1`.

    Held to 2^±63 below, so that what is multiplied by `down` (a row and its steering) stays finite; a
    `size` of inf or NaN gives the largest.
    """
    exponent = (size.to(tl.float32).to(tl.int32, bitcast=True) >> 23) & 255
    exponent = tl.minimum(tl.maximum(exponent, 64), 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True), (exponent << 23).to(
        tl.float32, bitcast=True
    )


@triton.jit
def length(row, down, up):
    """`‖row‖`, its squares taken at the scale `down`."""
    small = row * down
    return tl.sqrt(tl.sum(small * small, axis=0)) * up


@triton.jit
def element(vector, at):
    """`vector[at]` of a tensor in registers, for an index known at run time only."""
    return tl.sum(tl.where(tl.arange(0, vector.shape[0]) == at, vector, 0.0), axis=0)
