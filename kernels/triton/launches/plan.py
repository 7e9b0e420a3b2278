"""How a kernel is started: what it is given, its grid, its warps and the registers that leaves each thread."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..capability import PLATFORM, precision

# Elements of a block of rows that are read in blocks: the longer ones, unaligned ones, those of many slots.
LONG_BLOCK = 2048
# Elements of a row for each warp of 32 threads: 16 a thread, two 16-byte loads of bfloat16. Where a kernel
# needs few enough registers, 8 a thread: twice the warps for the same bytes in flight.
WARP_ELEMENTS, FEW_REGISTERS = 512, 256
WARP_SIZE = 64 if torch.version.hip else 32
# Blocks of a grid in its second dimension.
MOST_DOWN = 65535
# Of a multiprocessor, on every NVIDIA GPU since compute capability 5.0.
REGISTERS = 65536
PRECISION = precision(PLATFORM)


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

    def named(self, prefix: str = "") -> dict[str, int]:
        """As the arguments of a kernel."""
        return {f"{prefix}{name}": value for name, value in self._asdict().items()}


def size(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]


def spread_of(n: int, programs: int, token_row: Tensor | None) -> int:
    """How many tokens on end a row of the table serves; 0 where `token_row` says it."""
    return 0 if token_row is not None else max(n // programs, 1)


def over_rows(across: int, n: int, together: int) -> tuple[int, int]:
    """Blocks across the columns and down the rows; a device takes `MOST_DOWN` of the latter.

    Raises:
        ValueError: too many rows for one call.
    """
    most = MOST_DOWN * together
    if n > most:
        raise ValueError(f"x has {n} rows, one call on a GPU takes at most {most}; give it in parts")
    return across, triton.cdiv(n, together)
