"""Projections of a stream in two parts, `hidden + residual`, for the tokens that are read."""

import triton
import triton.language as tl
from torch import Tensor

from .launches import Launch, row_block
from .launches.plan import WARP_ELEMENTS
from .paths import kernel
from .rows import added_row

# Elements of a row that 16 warps keep in registers while the directions go by.
MOST_ELEMENTS = 8192


@kernel("hidden", "residual", "directions", "dim", "hidden_stride", "residual_stride")
def read_stream_kernel(
    hidden,
    residual,
    directions,
    reading,
    values,
    dim,
    n_directions,
    has_residual,
    hidden_stride: tl.int64,
    residual_stride: tl.int64,
    BLOCK: tl.constexpr,
):
    """`values[n] = <x_n, v_k>` with `x = hidden + residual` rounded; a token that is not read reads its flag only."""
    n = tl.program_id(0).to(tl.int64)
    if tl.load(reading + n) != 0:
        at = tl.arange(0, BLOCK)
        raw, _ = added_row(hidden + n * hidden_stride, residual + n * residual_stride, has_residual, at, dim)
        x = raw.to(tl.float32)
        into = values + n * n_directions
        for k in range(0, n_directions):
            v = tl.load(directions + k * dim + at, mask=at < dim, other=0.0)
            tl.store(into + k, tl.sum(x * v, axis=0))


def launch(
    hidden: Tensor, residual: Tensor | None, directions: Tensor, reading: Tensor, values: Tensor
) -> Launch | None:
    """One program a token; None where a row does not fit the registers, or is not aligned.

    Arguments as the operator's (`emosteer.vllm.read_operator`).
    """
    count, dim = hidden.shape
    other = hidden if residual is None else residual
    arguments = {
        "hidden": hidden,
        "residual": other,
        "directions": directions,
        "reading": reading,
        "values": values,
        "dim": dim,
        "n_directions": directions.shape[0],
        "has_residual": int(residual is not None),
        "hidden_stride": hidden.stride(0),
        "residual_stride": other.stride(0),
    }
    block, warps = row_block(dim, WARP_ELEMENTS)
    if block > MOST_ELEMENTS or not read_stream_kernel.fits(arguments):
        return None
    return Launch(
        read_stream_kernel.aligned, (count,), arguments, {"BLOCK": triton.next_power_of_2(block)}, warps, 512
    )
