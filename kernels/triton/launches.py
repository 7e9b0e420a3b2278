"""Which kernel runs a call, with which block and how many warps: the one place that chooses variants.

The same plans are launched on a device, compiled without one (`offline`) and counted in the tables of
predicted speed, so what is proven is what runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .long_rows import rms_norm_long_kernel, steer_long_kernel
from .moments import group_sums_kernel, scatter_kernel
from .norm import rms_norm_kernel
from .project import project_extremes_kernel, project_kernel
from .steer import steer_kernel, steer_rms_norm_kernel

# The longest row that one program keeps in registers: 16 elements for each of 512 threads.
LONGEST_RESIDENT = 8192
# Elements of a block of a longer row.
LONG_BLOCK = 4096
# Elements of a row for each warp of 32 threads: 16 a thread, two 16-byte loads of bfloat16. Where a kernel
# needs few enough registers, 8 a thread: twice the warps for the same bytes in flight.
WARP_ELEMENTS, FEW_REGISTERS = 512, 256
WARP_SIZE = 64 if torch.version.hip else 32
# Slots of a table that a program solves for at once.
MOST_SLOTS = 64
INTERPRETED = triton.knobs.runtime.interpret
# Six bfloat16 products for one of float32; the interpreter's are float32 anyway and have no such name.
PRECISION = "ieee" if INTERPRETED else "bf16x6"


class Launch(NamedTuple):
    """A kernel and everything it is started with."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    stages: int = 1

    def run(self) -> None:
        """Start it on the current device and stream."""
        self.kernel[self.grid](**self.arguments, **self.constants, **self.options())

    def options(self, warp_size: int = WARP_SIZE) -> dict[str, Any]:
        """What the compiler is told beside the constants; AMD's warps are twice as wide, so half as many."""
        warps = max(self.warps * 32 // warp_size, 1)
        return {"num_warps": warps, "num_stages": self.stages, "enable_fp_fusion": True}


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
    """`(elements of a block, warps)` for a row of `dim`."""
    if dim > LONGEST_RESIDENT:
        return LONG_BLOCK, LONG_BLOCK // WARP_ELEMENTS
    block = triton.next_power_of_2(dim)
    return block, max(block // warp_elements, 1)


def steer(
    x: Tensor,
    rows: Rows,
    out: Tensor | None,
    directions: Tensor,
    columns: tuple[Tensor, ...],
    token_row: Tensor | None,
    scale: float,
) -> Launch:
    """`out` None: in place."""
    (n, dim), steering = _size(x), _steering(x, directions, columns, token_row, scale)
    block, warps = row_block(dim, FEW_REGISTERS if columns[0].shape[1] == 1 else WARP_ELEMENTS)
    constants = _constants(columns, token_row, block) | {"IN_PLACE": out is None}
    arguments = {"x": x, "out": out, "dim": dim, **rows.named(), **steering}
    if dim <= LONGEST_RESIDENT:
        return Launch(steer_kernel, (n,), arguments, constants, warps)
    nothing = {"residual": None, "normed": None, "weight": None, "eps": 0.0, "weight_offset": 0.0}
    return Launch(
        steer_long_kernel,
        (n,),
        arguments | nothing | rows.named("residual_"),
        constants | {"RESIDUAL": False, "NORM": False},
        warps,
    )


def steer_rms_norm(
    x: Tensor,
    rows: Rows,
    residual: Tensor | None,
    residual_rows: Rows,
    normed: Tensor,
    weight: Tensor,
    directions: Tensor,
    columns: tuple[Tensor, ...],
    token_row: Tensor | None,
    scale: float,
    eps: float,
    weight_offset: float,
) -> Launch:
    (n, dim), steering = _size(x), _steering(x, directions, columns, token_row, scale)
    # Wider elements hold more registers at once; 32 warps of them would not fit.
    few = x.element_size() == 4 and dim <= LONGEST_RESIDENT // 2
    block, warps = row_block(dim, FEW_REGISTERS if few else WARP_ELEMENTS)
    constants = _constants(columns, token_row, block) | {"RESIDUAL": residual is not None}
    arguments = {
        "x": x,
        "residual": residual,
        "normed": normed,
        "weight": weight,
        "eps": eps,
        "weight_offset": weight_offset,
        "dim": dim,
        **rows.named(),
        **residual_rows.named("residual_"),
        **steering,
    }
    if dim <= LONGEST_RESIDENT:
        return Launch(steer_rms_norm_kernel, (n,), arguments, constants, warps)
    return Launch(
        steer_long_kernel,
        (n,),
        arguments | {"out": None},
        constants | {"IN_PLACE": True, "NORM": True},
        warps,
    )


def rms_norm(x: Tensor, rows: Rows, out: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Launch:
    n, dim = _size(x)
    block, warps = row_block(dim)
    arguments = {
        "x": x,
        "out": out,
        "weight": weight,
        "eps": eps,
        "weight_offset": weight_offset,
        "dim": dim,
        **rows.named(),
    }
    kernel = rms_norm_kernel if dim <= LONGEST_RESIDENT else rms_norm_long_kernel
    return Launch(kernel, (n,), arguments, {"BLOCK": block}, warps)


def project(
    x: Tensor, rows: Rows, directions: Tensor, center: Tensor | None, cosine: bool, scores: Tensor
) -> Launch:
    grid, constants, warps = _tiles(x, directions)
    arguments = {
        "x": x,
        "directions": directions,
        "center": center,
        "scores": scores,
        "rows": _size(x)[0],
        "n_directions": directions.shape[0],
        "dim": directions.shape[1],
        **rows.named(),
    }
    flags = {"CENTER": center is not None, "COSINE": cosine}
    return Launch(project_kernel, grid, arguments, constants | flags, warps, stages=2)


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
    grid, constants, warps = _tiles(x, directions)
    n, programs = _size(x)[0], maximum.shape[0]
    arguments = {
        "x": x,
        "directions": directions,
        "center": center,
        "maximum": maximum,
        "total": total,
        "token_row": token_row,
        "rows": n,
        "spread": max(n // programs, 1),
        "programs": programs,
        "n_directions": directions.shape[0],
        "dim": directions.shape[1],
        **rows.named(),
    }
    flags = {"CENTER": center is not None, "COSINE": cosine, "DENSE": token_row is None}
    return Launch(project_extremes_kernel, grid, arguments, constants | flags, warps, stages=2)


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
    grid = (triton.cdiv(dim, constants["BLOCK_D"]), triton.cdiv(n, constants["BLOCK_N"] * constants["TILES"]))
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
    return Launch(group_sums_kernel, grid, arguments, constants | flags, 4)


def scatter(x: Tensor, rows: Rows, weight: Tensor, shift: Tensor, scatter: Tensor) -> Launch:
    n, dim = _size(x)
    constants = {"BLOCK_N": 128 if INTERPRETED else 16, "BLOCK_D": 128, "PRECISION": PRECISION}
    side = triton.cdiv(dim, constants["BLOCK_D"])
    arguments = {
        "x": x,
        "weight": weight,
        "shift": shift,
        "scatter": scatter,
        "rows": n,
        "dim": dim,
        **rows.named(),
    }
    return Launch(scatter_kernel, (side * (side + 1) // 2,), arguments, constants, 8)


def _size(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def _constants(columns: tuple[Tensor, ...], token_row: Tensor | None, block: int) -> dict[str, Any]:
    slots = columns[0].shape[1]
    if slots > MOST_SLOTS:
        raise ValueError(
            f"table has {slots} slots, the triton backend takes at most {MOST_SLOTS}; "
            f"make a table with fewer (directions of one row that act alike can be summed beforehand)"
        )
    return {"DENSE": token_row is None, "SLOTS": triton.next_power_of_2(slots), "BLOCK": block}


def _steering(
    x: Tensor, directions: Tensor, columns: tuple[Tensor, ...], token_row: Tensor | None, scale: float
) -> dict[str, Any]:
    direction, strength, low, high, rotate, preserve_norm, relative = columns
    programs, slots = direction.shape
    return {
        "directions": directions,
        "direction": direction,
        "strength": strength,
        "low": low,
        "high": high,
        "rotate": rotate,
        "preserve_norm": preserve_norm,
        "relative": relative,
        "token_row": token_row,
        "scale": scale,
        "n_directions": directions.shape[0],
        "programs": programs,
        "spread": max(_size(x)[0] // programs, 1),
        "slots": slots,
    }


def _tiles(x: Tensor, directions: Tensor) -> tuple[tuple[int, int], dict[str, Any], int]:
    """A tile of 64 directions against 64 rows, of 16 where there are few rows and programs are wanted."""
    n, k = _size(x)[0], directions.shape[0]
    few = n <= 64
    constants = {
        "BLOCK_N": 16 if few else 64,
        "BLOCK_K": 16 if few else 64,
        "BLOCK_D": 16
        if x.element_size() == 4 and not few
        else 32,  # 64 bytes of a row; more spills on sm_100
        "PRECISION": PRECISION,
    }
    if INTERPRETED:
        constants |= {"BLOCK_K": 64, "BLOCK_D": 1024}
    grid = (triton.cdiv(k, constants["BLOCK_K"]), triton.cdiv(n, constants["BLOCK_N"]))
    return grid, constants, 4 if few else 8
