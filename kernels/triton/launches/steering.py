"""Steering and norms: rows that stay in registers, or are read in blocks."""

from __future__ import annotations

from typing import Any, Protocol

import triton
from torch import Tensor

from ..long_rows import rms_norm_long_kernel, steer_long_kernel
from ..norm import rms_norm_kernel
from ..paths import Kernel
from ..steer import steer_kernel, steer_rms_norm_kernel
from .plan import FEW_REGISTERS, LONG_BLOCK, WARP_ELEMENTS, Launch, Rows, size, spread_of

# The longest row that one program keeps in registers: 16 elements for each of 512 threads.
LONGEST_RESIDENT = 8192
# And in bytes where a norm follows, whose 16 warps hold 32 bytes a thread.
LONGEST_NORMED = 16 * 1024
# The shortest block: rows of up to so many columns share a variant.
LEAST_BLOCK = 1024
# Slots of a table that a program solves for at once: a variant for one, for up to 16, and for up to 64,
# of which the last needs the registers that a resident row would take.
SLOTS, MOST_RESIDENT_SLOTS = (1, 16, 64), 16


class Table(Protocol):
    """What is read of an `emosteer.ops.SteerTable`, which lives a floor above."""

    rows: int
    slots: int
    strides: tuple[int, int]
    direction: Tensor
    strength: Tensor
    low: Tensor
    high: Tensor
    rotate: Tensor
    preserve_norm: Tensor
    relative: Tensor


def row_block(dim: int, warp_elements: int = WARP_ELEMENTS) -> tuple[int, int]:
    """`(elements of a block, warps)` for a resident row of `dim`."""
    block = max(triton.next_power_of_2(dim), LEAST_BLOCK)
    return block, block // warp_elements


def steer(
    x: Tensor,
    rows: Rows,
    out: Tensor | None,
    directions: Tensor,
    table: Table,
    token_row: Tensor | None,
    scale: float,
) -> Launch:
    """`out` None: in place."""
    (n, dim), steering = size(x), _steering(x, directions, table, token_row, scale)
    slots = _slots(table)
    arguments = {"x": x, "out": x if out is None else out, "in_place": int(out is None)}
    arguments |= rows.named() | steering
    if _resident(steer_kernel, arguments, slots):
        one = slots == 1
        block, warps = row_block(dim, FEW_REGISTERS if one else WARP_ELEMENTS)
        constants = {"SLOTS": slots, "BLOCK": block}
        return Launch(steer_kernel.aligned, (n,), arguments, constants, warps, 1024 if one else 512)
    nothing = {
        "residual": x,
        "has_residual": 0,
        "normed": None,
        "weight": None,
        "eps": 0.0,
        "weight_offset": 0.0,
    }
    arguments |= nothing | rows.named("residual_")
    return _in_blocks(steer_long_kernel, (n,), arguments, {"SLOTS": slots, "NORM": False})


def steer_rms_norm(
    x: Tensor,
    rows: Rows,
    residual: Tensor | None,
    residual_rows: Rows,
    normed: Tensor,
    weight: Tensor,
    directions: Tensor,
    table: Table,
    token_row: Tensor | None,
    scale: float,
    eps: float,
    weight_offset: float,
) -> Launch:
    (n, dim), steering = size(x), _steering(x, directions, table, token_row, scale)
    slots = _slots(table)
    arguments = {
        "x": x,
        "residual": x if residual is None else residual,
        "has_residual": int(residual is not None),
        "normed": normed,
        "weight": weight,
        "eps": eps,
        "weight_offset": weight_offset,
        **rows.named(),
        **residual_rows.named("residual_"),
        **steering,
    }
    if _resident(steer_rms_norm_kernel, arguments, slots, LONGEST_NORMED // x.element_size()):
        block, warps = row_block(dim, WARP_ELEMENTS * 2 // x.element_size())
        constants = {"SLOTS": slots, "BLOCK": block}
        return Launch(steer_rms_norm_kernel.aligned, (n,), arguments, constants, warps, 512)
    arguments |= {"out": x, "in_place": 1}
    return _in_blocks(steer_long_kernel, (n,), arguments, {"SLOTS": slots, "NORM": True})


def rms_norm(x: Tensor, rows: Rows, out: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Launch:
    n, dim = size(x)
    arguments = {
        "x": x,
        "out": out,
        "weight": weight,
        "eps": eps,
        "weight_offset": weight_offset,
        "dim": dim,
        **rows.named(),
    }
    if _resident(rms_norm_kernel, arguments):
        block, warps = row_block(dim)
        return Launch(rms_norm_kernel.aligned, (n,), arguments, {"BLOCK": block}, warps, 1024)
    return _in_blocks(rms_norm_long_kernel, (n,), arguments, {})


def _resident(
    kernel: Kernel, arguments: dict[str, Any], slots: int = 1, longest: int = LONGEST_RESIDENT
) -> bool:
    """Whether rows stay in registers: short enough, room for what solves the slots, aligned."""
    return arguments["dim"] <= longest and slots <= MOST_RESIDENT_SLOTS and kernel.fits(arguments)


def _in_blocks(
    kernel: Kernel, grid: tuple[int, ...], arguments: dict[str, Any], constants: dict[str, Any]
) -> Launch:
    constants = constants | {"BLOCK": LONG_BLOCK}
    resident = 256 if constants.get("SLOTS") == SLOTS[-1] else 512
    return Launch(kernel.path(arguments), grid, arguments, constants, LONG_BLOCK // FEW_REGISTERS, resident)


def _slots(table: Table) -> int:
    """The slots of the variant for a table."""
    slots = table.slots
    for bound in SLOTS:
        if slots <= bound:
            return bound
    raise ValueError(
        f"table has {slots} slots, the triton backend takes at most {SLOTS[-1]}; "
        f"make a table with fewer (directions of one row that act alike can be summed beforehand)"
    )


def _steering(
    x: Tensor, directions: Tensor, table: Table, token_row: Tensor | None, scale: float
) -> dict[str, Any]:
    (n, dim), programs = size(x), table.rows
    line, flag_line = table.strides
    return {
        "directions": directions,
        "direction": table.direction,
        "strength": table.strength,
        "low": table.low,
        "high": table.high,
        "rotate": table.rotate,
        "preserve_norm": table.preserve_norm,
        "relative": table.relative,
        "token_row": table.direction if token_row is None else token_row,
        "scale": scale,
        "dim": dim,
        "rows": n,
        "n_directions": directions.shape[0],
        "programs": programs,
        "spread": spread_of(n, programs, token_row),
        "slots": table.slots,
        "line": line,
        "flag_line": flag_line,
    }
