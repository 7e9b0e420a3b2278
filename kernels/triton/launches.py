"""Which kernel runs a call, with which block and how many warps: the one place that chooses variants.

The same plans are launched on a device, compiled without one (`offline`) and counted in the tables of
predicted speed, so what is proven is what runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import triton
from torch import Tensor

from .capability import INTERPRETED, PLATFORM, precision
from .long_rows import rms_norm_long_kernel, steer_long_kernel
from .moments import group_sums_kernel, scatter_kernel
from .norm import rms_norm_kernel
from .paths import Kernel
from .project import combine_parts_kernel, project_extremes_kernel, project_kernel, project_parts_kernel
from .steer import steer_kernel, steer_rms_norm_kernel

# The longest row that one program keeps in registers: 16 elements for each of 512 threads.
LONGEST_RESIDENT = 8192
# And in bytes where a norm follows, whose 16 warps hold 32 bytes a thread.
LONGEST_NORMED = 16 * 1024
# Elements of a block of rows that are read in blocks: the longer ones, unaligned ones, those of many slots.
LONG_BLOCK = 2048
# Elements of a row for each warp of 32 threads: 16 a thread, two 16-byte loads of bfloat16. Where a kernel
# needs few enough registers, 8 a thread: twice the warps for the same bytes in flight.
WARP_ELEMENTS, FEW_REGISTERS = 512, 256
WARP_SIZE = 64 if torch.version.hip else 32
# The shortest block: rows of up to so many columns share a variant.
LEAST_BLOCK = 1024
# Slots of a table that a program solves for at once: a variant for one, for up to 16, and for up to 64,
# of which the last needs the registers that a resident row would take.
SLOTS, MOST_RESIDENT_SLOTS = (1, 16, 64), 16
# Blocks of a grid in its second dimension.
MOST_DOWN = 65535
# Of a multiprocessor, on every NVIDIA GPU since compute capability 5.0.
REGISTERS = 65536
PRECISION = precision(PLATFORM)
# Up to so many rows a projection splits its columns between programs: as many as make `ENOUGH_BLOCKS` (two for each
# multiprocessor of the largest GPUs), of `PART_STEPS` steps at least, so that adding up does not take longer.
FEW_ROWS, ENOUGH_BLOCKS, PART_STEPS, MOST_PARTS = 64, 264, 1 if INTERPRETED else 8, 32
_PARTS = {"BLOCK_N": 16, "BLOCK_K": 64 if INTERPRETED else 16, "BLOCK_D": 1024 if INTERPRETED else 32}


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


class Launch(NamedTuple):
    """A kernel and everything it is started with.

    Attributes:
        resident: threads that a multiprocessor is to hold at once, which bounds the registers of each.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    resident: int
    stages: int = 1

    def run(self) -> Any:
        """Start it on the current device and stream; Triton's compiled kernel, None in the interpreter."""
        return self.kernel[self.grid](**self.arguments, **self.constants, **self.options())

    def constants_on(self, platform: str) -> dict[str, Any]:
        """The constants on another platform ("cuda", "hip") than this machine's."""
        if "PRECISION" not in self.constants:
            return self.constants
        return self.constants | {"PRECISION": precision(platform)}

    def options(self, warp_size: int = WARP_SIZE) -> dict[str, Any]:
        """What the compiler is told beside the constants; AMD's warps are twice as wide, so half as many."""
        warps = max(self.warps * 32 // warp_size, 1)
        bound = {"maxnreg": min(REGISTERS // self.resident, 255)} if warp_size == 32 else {}
        return {"num_warps": warps, "num_stages": self.stages, "enable_fp_fusion": True} | bound


class Rows(NamedTuple):
    """The rows of a tensor by two strides in elements: row n lies at (n // inner, n % inner)."""

    inner: int
    outer_stride: int
    inner_stride: int

    @classmethod
    def dense(cls, x: Tensor) -> Rows:
        """Of a contiguous tensor."""
        return cls(1, x.shape[-1], 0)

    @classmethod
    def of(cls, x: Tensor) -> Rows | None:
        """None where the leading dimensions do not collapse to two."""
        if x.is_contiguous():
            return cls.dense(x)
        sizes: list[int] = []
        strides: list[int] = []
        for size, stride in zip(x.shape[:-1], x.stride()[:-1]):
            if size == 1:
                continue
            if sizes and strides[-1] == size * stride:  # collapses into the dimension before
                sizes[-1], strides[-1] = sizes[-1] * size, stride
            else:
                sizes.append(size)
                strides.append(stride)
        if len(sizes) > 2:
            return None
        if len(sizes) == 2:
            return cls(sizes[1], strides[0], strides[1])
        return cls(1, strides[0] if strides else x.shape[-1], 0)

    def named(self, prefix: str = "") -> dict[str, int]:
        """As the arguments of a kernel."""
        return {f"{prefix}{name}": value for name, value in self._asdict().items()}


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
    (n, dim), steering = _size(x), _steering(x, directions, table, token_row, scale)
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
    (n, dim), steering = _size(x), _steering(x, directions, table, token_row, scale)
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
    n, dim = _size(x)
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


def project(
    x: Tensor, rows: Rows, directions: Tensor, center: Tensor | None, cosine: bool, scores: Tensor
) -> Launch:
    grid, constants, warps, resident = _tiles(x, directions)
    arguments = {
        "x": x,
        "directions": directions,
        "center": directions if center is None else center,
        "has_center": int(center is not None),
        "scores": scores,
        "rows": _size(x)[0],
        "n_directions": directions.shape[0],
        "dim": directions.shape[1],
        **rows.named(),
    }
    constants |= {"COSINE": cosine}
    return Launch(project_kernel.path(arguments), grid, arguments, constants, warps, resident, stages=2)


def project_extremes(
    x: Tensor,
    rows: Rows,
    directions: Tensor,
    center: Tensor | None,
    cosine: bool,
    maximum: Tensor,
    total: Tensor,
    token_row: Tensor | None,
) -> Launch:
    grid, constants, warps, resident = _tiles(x, directions)
    n, programs = _size(x)[0], maximum.shape[0]
    arguments = {
        "x": x,
        "directions": directions,
        "center": directions if center is None else center,
        "has_center": int(center is not None),
        "maximum": maximum,
        "total": total,
        "rows": n,
        # Never read where tokens are spread evenly, and yet of a type.
        "token_row": maximum.view(torch.int32) if token_row is None else token_row,
        "spread": _spread(n, programs, token_row),
        "programs": programs,
        "n_directions": directions.shape[0],
        "dim": directions.shape[1],
        **rows.named(),
    }
    constants |= {"COSINE": cosine}
    return Launch(
        project_extremes_kernel.path(arguments), grid, arguments, constants, warps, resident, stages=2
    )


def splits(x: Tensor, directions: Tensor) -> int:
    """Between how many programs the columns of a projection are split; 0 where its rows alone make enough tiles."""
    (n, dim), k = _size(x), directions.shape[0]
    if n > FEW_ROWS:
        return 0
    tiles = triton.cdiv(k, _PARTS["BLOCK_K"]) * triton.cdiv(n, _PARTS["BLOCK_N"])
    longest = triton.cdiv(dim, PART_STEPS * _PARTS["BLOCK_D"])
    return max(min(triton.cdiv(ENOUGH_BLOCKS, tiles), longest, MOST_PARTS), 1)


def project_parts(x: Tensor, rows: Rows, directions: Tensor, center: Tensor | None, parts: Tensor) -> Launch:
    """`parts` `[splits, N, K]`, for `combine_parts`."""
    (n, dim), (k, _), block = _size(x), directions.shape, _PARTS["BLOCK_D"]
    span = triton.cdiv(triton.cdiv(dim, parts.shape[0]), block) * block
    grid = triton.cdiv(k, _PARTS["BLOCK_K"]), triton.cdiv(n, _PARTS["BLOCK_N"]), parts.shape[0]
    arguments = {
        "x": x,
        "directions": directions,
        "center": directions if center is None else center,
        "has_center": int(center is not None),
        "parts": parts,
        "rows": n,
        "n_directions": k,
        "dim": dim,
        "span": span,
        **rows.named(),
    }
    constants = {**_PARTS, "PRECISION": PRECISION}
    return Launch(project_parts_kernel.path(arguments), grid, arguments, constants, 4, 384, stages=2)


def combine_parts(
    x: Tensor,
    rows: Rows,
    center: Tensor | None,
    cosine: bool,
    parts: Tensor,
    scores: Tensor | None,
    maximum: Tensor | None = None,
    total: Tensor | None = None,
    token_row: Tensor | None = None,
) -> Launch:
    """Into `scores`, or into `maximum` and `total` by `token_row`."""
    n, dim = _size(x)
    programs = 1 if maximum is None else maximum.shape[0]
    arguments = {
        "x": x,
        "center": parts if center is None else center,
        "has_center": int(center is not None),
        "parts": parts,
        "scores": parts if scores is None else scores,
        "maximum": parts if maximum is None else maximum,
        "total": parts if total is None else total,
        "token_row": parts.view(torch.int32) if token_row is None else token_row,
        "rows": n,
        "spread": _spread(n, programs, token_row),
        "programs": programs,
        "n_directions": parts.shape[2],
        "dim": dim,
        "splits": parts.shape[0],
        **rows.named(),
    }
    constants = {"COSINE": cosine, "EXTREMES": scores is None, "BLOCK_K": 128}
    constants |= {"BLOCK_I": MOST_PARTS, "BLOCK": LONG_BLOCK}
    return Launch(combine_parts_kernel.path(arguments), (n,), arguments, constants, 8, 512)


def group_sums(
    x: Tensor,
    rows: Rows,
    group: Tensor | None,
    weight: Tensor,
    total: Tensor,
    *,
    shift: Tensor | None = None,
    started: Tensor | None = None,
    centred: Tensor | None = None,
) -> Launch:
    """With `started` the pilot: one sum of everything, and nothing at all where the flag is set."""
    n, dim = _size(x)
    constants = {"BLOCK_N": 16, "BLOCK_D": 128, "TILES": 8}
    if INTERPRETED:  # which takes as long for a large tile as for a small one
        constants = {"BLOCK_N": 128, "BLOCK_D": 1024, "TILES": 2}
    grid = _over_rows(triton.cdiv(dim, constants["BLOCK_D"]), n, constants["BLOCK_N"] * constants["TILES"])
    arguments = {
        "x": x,
        "group": group,
        "weight": weight,
        "shift": shift,
        "total": total,
        "centred": centred,
        "started": started,
        "rows": n,
        "groups": total.shape[0],
        "dim": dim,
        **rows.named(),
    }
    flags = {"GROUPED": group is not None, "PILOT": started is not None, "CENTRED": centred is not None}
    return Launch(group_sums_kernel.path(arguments), grid, arguments, constants | flags, 4, 256)


def scatter(x: Tensor, rows: Rows, weight: Tensor, shift: Tensor, scatter: Tensor) -> Launch:
    n, dim = _size(x)
    arguments = {
        "x": x,
        "weight": weight,
        "shift": shift,
        "scatter": scatter,
        "rows": n,
        "dim": dim,
        **rows.named(),
    }
    # Addresses of what is not aligned take registers; a tile of half the side leaves them.
    block = 128 if scatter_kernel.fits(arguments) else 64
    constants = {"BLOCK_N": 128 if INTERPRETED else 16, "BLOCK_D": block, "PRECISION": PRECISION}
    side = triton.cdiv(dim, block)
    grid = (side * (side + 1) // 2,)
    return Launch(scatter_kernel.path(arguments), grid, arguments, constants, 8, 256)


def _size(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


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


def _spread(n: int, programs: int, token_row: Tensor | None) -> int:
    """How many tokens on end a row of the table serves; 0 where `token_row` says it."""
    return 0 if token_row is not None else max(n // programs, 1)


def _steering(
    x: Tensor, directions: Tensor, table: Table, token_row: Tensor | None, scale: float
) -> dict[str, Any]:
    (n, dim), programs = _size(x), table.rows
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
        "spread": _spread(n, programs, token_row),
        "slots": table.slots,
        "line": line,
        "flag_line": flag_line,
    }


def _tiles(x: Tensor, directions: Tensor) -> tuple[tuple[int, int], dict[str, Any], int, int]:
    """A tile of 64 directions against 64 rows."""
    constants: dict[str, Any] = {
        "BLOCK_N": 64,
        "BLOCK_K": 64,
        "BLOCK_D": 16 if x.element_size() == 4 else 32,  # 64 bytes of a row; more spills on sm_100
        "PRECISION": PRECISION,
    }
    if INTERPRETED:
        constants |= {"BLOCK_D": 1024}
    grid = _over_rows(
        triton.cdiv(directions.shape[0], constants["BLOCK_K"]), _size(x)[0], constants["BLOCK_N"]
    )
    return grid, constants, 8, 256


def _over_rows(across: int, n: int, together: int) -> tuple[int, int]:
    """Blocks across the columns and down the rows; a device takes `MOST_DOWN` of the latter.

    Raises:
        ValueError: too many rows for one call.
    """
    most = MOST_DOWN * together
    if n > most:
        raise ValueError(f"x has {n} rows, one call on a GPU takes at most {most}; give it in parts")
    return across, triton.cdiv(n, together)
