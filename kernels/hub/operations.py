"""Steering, norms and projections of rows by the Triton kernels alone: tensors in, tensors out, no emosteer beside.

The formulas, and what a table holds, are those of `emosteer.ops`, which also checks arguments, runs on CPUs and has a
definition to compare with. Here rows are contiguous `[..., D]` float32, bfloat16 or float16 on one GPU, directions
float32 `[K, D]` of unit length, and no index or number is looked at before a kernel uses it: an index out of range is
an empty slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import launches


@dataclass(frozen=True)
class Table:
    """R programs of S slots: what a row does to the stream. A program is changed by writing into the tensors.

    Attributes:
        direction: int32 `[R, S]`, an index into the directions, −1 for an empty slot.
        strength, low, high, rotate: float32 `[R, S]`: pushed by, bounds of the projection, radians.
        preserve_norm: uint8 `[R]`: 0 not, 1 the whole row, 2 what is orthogonal to the row's directions.
        relative: uint8 `[R]`, whether numbers are fractions of each token's own norm.
    """

    direction: Tensor
    strength: Tensor
    low: Tensor
    high: Tensor
    rotate: Tensor
    preserve_norm: Tensor
    relative: Tensor

    @classmethod
    def empty(cls, rows: int, slots: int = 1, device: torch.device | str = "cuda") -> Table:
        """A table that leaves every row as it is."""
        plain = torch.zeros(rows, slots, device=device)
        flag = torch.zeros(rows, dtype=torch.uint8, device=device)
        bounds = torch.full_like(plain, -torch.inf), torch.full_like(plain, torch.inf)
        nothing = torch.full((rows, slots), -1, dtype=torch.int32, device=device)
        return cls(nothing, plain, *bounds, plain.clone(), flag, flag.clone())

    @property
    def rows(self) -> int:
        return self.direction.shape[0]

    @property
    def slots(self) -> int:
        return self.direction.shape[1]

    @property
    def strides(self) -> tuple[int, int]:
        return self.slots, 1


def steer_(
    x: Tensor, directions: Tensor, table: Table, token_row: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Steer rows in place. `token_row`: int32, the row of the table for each row of `x`; None: evenly spread."""
    with torch.cuda.device_of(x):
        launches.steer(x, _rows(x), None, directions, table, token_row, scale).run()
    return x


def steer_rms_norm_(
    x: Tensor,
    weight: Tensor,
    directions: Tensor,
    table: Table,
    token_row: Tensor | None = None,
    scale: float = 1.0,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> Tensor:
    """Steer rows in place, and return their RMS norm: one read of the stream for both."""
    rows, normed = _rows(x), torch.empty_like(x)
    steering = directions, table, token_row, scale
    with torch.cuda.device_of(x):
        launches.steer_rms_norm(x, rows, None, rows, normed, weight, *steering, eps, weight_offset).run()
    return normed


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, weight_offset: float = 0.0) -> Tensor:
    """`x / √(mean x² + eps) · (weight + weight_offset)`, rounded once."""
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        launches.rms_norm(x, _rows(x), out, weight, eps, weight_offset).run()
    return out


def project(x: Tensor, directions: Tensor, center: Tensor | None = None, cosine: bool = False) -> Tensor:
    """float32 `[..., K]`: `(x − center)·directionsᵀ`, divided by `‖x − center‖` for cosines."""
    scores = torch.empty(*x.shape[:-1], directions.shape[0], device=x.device)
    with torch.cuda.device_of(x):
        launches.project(x, _rows(x), directions, center, cosine, scores).run()
    return scores


def _rows(x: Tensor) -> launches.Rows:
    if not x.is_contiguous():
        raise ValueError(f"x must be contiguous, got strides {tuple(x.stride())}; call x.contiguous() first")
    return launches.Rows.dense(x)
