"""Steering of a stream in two parts, `hidden + residual`, each token by a row that says at which layers it acts."""

import triton
import triton.language as tl
from torch import Tensor

from .launches import Launch, row_block
from .launches.plan import WARP_ELEMENTS
from .launches.steering import MOST_RESIDENT_SLOTS, SLOTS
from .paths import kernel
from .row_update import steered
from .rows import added_row


@kernel("hidden", "residual", "directions", "dim", "hidden_stride", "residual_stride")
def steer_stream_kernel(
    hidden,
    residual,
    directions,
    rows,
    numbers,
    flags,
    place,
    units,
    token_row,
    dim,
    n_directions,
    programs,
    width,
    slots,
    has_residual,
    hidden_stride: tl.int64,
    residual_stride: tl.int64,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`hidden += steer(x) − x` with `x = hidden + residual` rounded; a token that is left alone reads its row only.

    `rows`, `numbers` and `flags` are the same memory as int32, float32 and bytes, `width` words a row.
    """
    n = tl.program_id(0).to(tl.int64)
    row = tl.load(token_row + n).to(tl.int64)
    acts = row < -1
    if (row >= 0) & (row < programs):
        word = tl.load(rows + row * width + tl.load(place + 1))
        acts = ((word >> tl.load(place + 2)) & 1) != 0
    if acts:
        at = tl.arange(0, BLOCK)
        fits = at < dim
        scale = tl.load(units + tl.load(rows + row * width + tl.load(place)))
        here = hidden + n * hidden_stride
        raw, _ = added_row(here, residual + n * residual_stride, has_residual, at, dim)
        x = raw.to(tl.float32)
        bank = (directions, n_directions, dim)
        table = (
            rows,
            numbers + slots,
            numbers + 2 * slots,
            numbers + 3 * slots,
            numbers + 4 * slots,
            flags + 20 * slots,
            flags + 20 * slots + 1,
            slots,
            width,
            4 * width,
        )
        y, changed = steered(x, at, fits, row, bank, table, scale, SLOTS)
        if changed:
            own = tl.load(here + at, mask=fits, other=0.0).to(tl.float32)
            tl.store(here + at, (own + (y - x)).to(raw.dtype), mask=fits)


def launch(
    hidden: Tensor,
    residual: Tensor | None,
    directions: Tensor,
    rows: Tensor,
    numbers: Tensor,
    flags: Tensor,
    place: Tensor,
    units: Tensor,
    token_row: Tensor,
    slots: int,
) -> Launch | None:
    """One program a token; None where a row does not fit the registers, or is not aligned.

    Arguments as the operator's (`emosteer.vllm.operator`), `numbers` and `flags` views of `rows`.
    """
    count, dim = hidden.shape
    other = hidden if residual is None else residual
    arguments = {
        "hidden": hidden,
        "residual": other,
        "directions": directions,
        "rows": rows,
        "numbers": numbers,
        "flags": flags,
        "place": place,
        "units": units,
        "token_row": token_row,
        "dim": dim,
        "n_directions": directions.shape[0],
        "programs": rows.shape[0],
        "width": rows.shape[1],
        "slots": slots,
        "has_residual": int(residual is not None),
        "hidden_stride": hidden.stride(0),
        "residual_stride": other.stride(0),
    }
    block, warps = row_block(dim, WARP_ELEMENTS)
    if block > MOST_ELEMENTS or slots > MOST_RESIDENT_SLOTS or not steer_stream_kernel.fits(arguments):
        return None
    constants = {
        "SLOTS": next(most for most in SLOTS if slots <= most),
        "BLOCK": triton.next_power_of_2(block),
    }
    return Launch(steer_stream_kernel.aligned, (count,), arguments, constants, warps, 512)


# Elements of a row that 16 warps keep in registers beside the row before it was steered.
MOST_ELEMENTS = 8192
