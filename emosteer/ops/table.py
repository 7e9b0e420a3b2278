"""The steering table: what each row of a batch does to its residual stream, as tensors at fixed addresses."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_COLUMNS = ("direction", "strength", "low", "high", "rotate", "preserve_norm", "relative")
_DTYPES = {
    "direction": torch.int32,
    "strength": torch.float32,
    "low": torch.float32,
    "high": torch.float32,
    "rotate": torch.float32,
    "preserve_norm": torch.uint8,
    "relative": torch.uint8,
}


class _Back:
    """From a column to its table, without keeping it alive; a copy of the column knows no table."""

    def __init__(self, table: SteerTable | None = None) -> None:
        self.table = weakref.ref(table) if table is not None else lambda: None

    def __reduce__(self) -> tuple:
        return _Back, ()


class SteerTable:
    """R steering programs of S slots each, one row a program.

    For a token with residual row `x`, table row `r`, unit directions `v_j` of the slots of `r`,
    projections `p_j = <x, v_j>` and the unit of length `u = scale` (`scale·‖x‖` where `relative`):

        δ_j = strength_j·u + clip(p_j, low_j·u, high_j·u) − p_j
        y   = x + Σ_j δ_j v_j + Σ_j (R_j x − x)
        preserve_norm 1:  y ← y·‖x‖/‖y‖                                     where ‖y‖ > 0
        preserve_norm 2:  only the part of y orthogonal to the row's directions is rescaled

    `R_j` turns `x` by `rotate_j` radians towards `v_j` in the plane of both and stops at `v_j`
    (a negative angle turns away and stops at `−v_j`); where `x` is parallel to `v_j` there is no
    such plane and `R_j x = x`. Slots act at once, from the same `x`: bounds on directions that are
    not orthogonal therefore interact.

    Attributes (all on one device; write into them, they are never replaced, so that CUDA graphs and
    compiled code see every change):
        direction: int32 `[R, S]`, row of the bank of directions, −1 for an empty slot.
        strength: float32 `[R, S]`, finite.
        low, high: float32 `[R, S]`, −inf/+inf for no bound, `low ≤ high`.
        rotate: float32 `[R, S]`, radians in `[−π, π]`, 0 for none.
        preserve_norm: uint8 `[R]`: 0 no, 1 the whole row, 2 the orthogonal part.
        relative: uint8 `[R]`: 1 to measure strengths and bounds in units of `‖x‖`.

    A row whose slots are all empty leaves its tokens bit for bit as they were.
    """

    __slots__ = (*_COLUMNS, "__weakref__", "_handle")

    direction: Tensor
    strength: Tensor
    low: Tensor
    high: Tensor
    rotate: Tensor
    preserve_norm: Tensor
    relative: Tensor
    _handle: Any  # the CPU kernels' view of the columns, made at the first use

    def __init__(
        self,
        direction: Tensor,
        strength: Tensor,
        low: Tensor,
        high: Tensor,
        rotate: Tensor,
        preserve_norm: Tensor,
        relative: Tensor,
    ) -> None:
        columns = (direction, strength, low, high, rotate, preserve_norm, relative)
        for name, column in zip(_COLUMNS, columns):
            object.__setattr__(self, name, column)
        object.__setattr__(self, "_handle", None)
        direction._emosteer_table = _Back(self)  # type: ignore[attr-defined]

    @classmethod
    def of(cls, *columns: Tensor) -> SteerTable:
        """The table that these columns belong to, or a new one: operators get columns, not tables."""
        known = getattr(columns[0], "_emosteer_table", None)
        table = known.table() if known is not None else None
        if table is not None and all(a is b for a, b in zip(table.columns(), columns)):
            return table
        return cls(*columns)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"SteerTable.{name} cannot be replaced: compiled code and CUDA graphs hold its address. "
            f"Write into it instead: table.{name}[...] = value"
        )

    def __reduce__(self) -> tuple:
        return SteerTable, self.columns()

    @classmethod
    def empty(cls, rows: int, slots: int = 1, *, device: torch.device | str = "cpu") -> SteerTable:
        """An idle table: every slot empty, no bounds, no rotation, norms not preserved."""
        for name, value in (("rows", rows), ("slots", slots)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        shape = (rows, slots)
        return cls(
            torch.full(shape, -1, dtype=torch.int32, device=device),
            torch.zeros(shape, device=device),
            torch.full(shape, -math.inf, device=device),
            torch.full(shape, math.inf, device=device),
            torch.zeros(shape, device=device),
            torch.zeros(rows, dtype=torch.uint8, device=device),
            torch.zeros(rows, dtype=torch.uint8, device=device),
        )

    @property
    def rows(self) -> int:
        return self.direction.shape[0]

    @property
    def slots(self) -> int:
        return self.direction.shape[1]

    @property
    def device(self) -> torch.device:
        return self.direction.device

    def columns(self) -> tuple[Tensor, ...]:
        """The tensors in the order of the operators' schemas."""
        return tuple(getattr(self, name) for name in _COLUMNS)

    def clear_(self, row: int | slice = slice(None)) -> SteerTable:
        """Make `row` (default: every row) idle again."""
        self.direction[row] = -1
        self.strength[row] = 0.0
        self.low[row] = -math.inf
        self.high[row] = math.inf
        self.rotate[row] = 0.0
        self.preserve_norm[row] = 0
        self.relative[row] = 0
        return self

    def copy_(self, other: SteerTable) -> SteerTable:
        """Take over another table's values (same shape), keeping the addresses."""
        for mine, theirs in zip(self.columns(), other.columns()):
            if mine.shape != theirs.shape:
                raise ValueError(
                    f"other has {other.rows} rows of {other.slots} slots, this table has {self.rows} of {self.slots}"
                )
            mine.copy_(theirs)
        return self

    def first(self, rows: int) -> SteerTable:
        """A table of its first rows, in the same memory."""
        return SteerTable(*(column[:rows] for column in self.columns()))

    def to(self, device: torch.device | str) -> SteerTable:
        """A copy on another device (the same table where it already lies there)."""
        if torch.device(device) == self.device:
            return self
        return SteerTable(*(column.to(device) for column in self.columns()))

    def validate(self, k: int, *, exact: bool = False) -> SteerTable:
        """Check every value against a bank of `k` directions; synchronises with the device.

        `exact` admits float64 columns, for gradient checks of the reference.

        Raises:
            TypeError: a column has another dtype than the class documents.
            ValueError: a shape, an index outside [−1, k), a strength or angle that is not finite,
                a NaN bound, low > high, an unknown preserve_norm or relative.
        """
        for problem in itertools.chain(self.misshapen(exact), self._misvalued(k)):
            raise problem
        return self

    def misshapen(self, exact: bool = False) -> Iterator[Exception]:
        """What is wrong with the columns' shapes, dtypes and layout; reads no values."""
        if self.direction.ndim != 2:
            yield ValueError(f"table.direction must be [R, S], got shape {list(self.direction.shape)}")
        rows, slots = self.direction.shape
        for name in _COLUMNS:
            column = getattr(self, name)
            double = exact and column.dtype == torch.float64 and _DTYPES[name] == torch.float32
            if column.dtype != _DTYPES[name] and not double:
                yield TypeError(f"table.{name} must be {_DTYPES[name]}, got {column.dtype}")
            want = (rows,) if name in ("preserve_norm", "relative") else (rows, slots)
            if tuple(column.shape) != want:
                yield ValueError(f"table.{name} must have shape {list(want)}, got {list(column.shape)}")
            if column.device != self.device:
                yield ValueError(f"table.{name} is on {column.device}, table.direction on {self.device}")
            if not column.is_contiguous():
                yield ValueError(f"table.{name} must be contiguous, got strides {column.stride()}")

    def _misvalued(self, k: int) -> Iterator[Exception]:
        used = (self.direction != -1).cpu()

        def first(bad: Tensor) -> tuple[int, ...] | None:
            where = bad.nonzero()
            return tuple(where[0].tolist()) if len(where) else None

        direction = self.direction.cpu()
        if at := first((direction < -1) | (direction >= k)):
            yield ValueError(
                f"table.direction{list(at)} is {direction[at].item()}, expected −1 (empty) or an index below {k}, "
                f"the number of directions"
            )
        strength, low, high, angle = (c.cpu() for c in (self.strength, self.low, self.high, self.rotate))
        if at := first(used & ~strength.isfinite()):
            yield ValueError(f"table.strength{list(at)} is {strength[at].item()}, expected a finite number")
        if at := first(used & ~(angle.abs() <= 3.1415928)):
            yield ValueError(
                f"table.rotate{list(at)} is {angle[at].item()}, expected radians between −π and π"
            )
        if at := first(used & ~(low <= high)):
            yield ValueError(
                f"table.low{list(at)} is {low[at].item()} and table.high{list(at)} is {high[at].item()}, "
                f"expected low ≤ high and no NaN"
            )
        if at := first(self.preserve_norm.cpu() > 2):
            yield ValueError(
                f"table.preserve_norm{list(at)} is {self.preserve_norm[at].item()}, expected 0, 1 or 2"
            )
        if at := first(self.relative.cpu() > 1):
            yield ValueError(f"table.relative{list(at)} is {self.relative[at].item()}, expected 0 or 1")

    def __repr__(self) -> str:
        used = int((self.direction >= 0).any(dim=1).sum())
        return f"SteerTable(rows={self.rows}, slots={self.slots}, device={self.device}, {used} in use)"
