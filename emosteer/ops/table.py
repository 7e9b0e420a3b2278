"""The steering table: what each row of a batch does to its residual stream, as tensors at fixed addresses.

A table made by `empty` keeps a row in one piece of memory, its *record*: `[direction × S, strength × S, low × S,
high × S, rotate × S, (preserve_norm, relative)]`, 64 bytes for up to three slots. A kernel finds all that a token
needs in one or two cache lines, and one copy of consecutive rows replaces whole programs at once. The columns are
views into it.
"""

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
# Columns of one entry a slot, in 4-byte words; the two flags of a row share the word after them.
_SLOTTED = _COLUMNS[:5]
_WORD = 4
# Records start at multiples of 64 bytes.
_RECORD_WORDS = 16


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

        record: int32 `[R, W]`, the memory of all columns; None for a table made of columns that lie apart.

    A row whose slots are all empty leaves its tokens bit for bit as they were.
    """

    __slots__ = (*_COLUMNS, "__weakref__", "_handle", "record")

    direction: Tensor
    strength: Tensor
    low: Tensor
    high: Tensor
    rotate: Tensor
    preserve_norm: Tensor
    relative: Tensor
    record: Tensor | None
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
        object.__setattr__(self, "record", None)
        direction._emosteer_table = _Back(self)  # type: ignore[attr-defined]

    @classmethod
    def of(cls, *columns: Tensor) -> SteerTable:
        """The table that these columns belong to, or a new one: operators get columns, not tables."""
        known = getattr(columns[0], "_emosteer_table", None)
        table = known.table() if known is not None else None
        if table is not None and all(a is b for a, b in zip(table.columns(), columns)):
            return table
        apart = {column.stride(0) for column in columns[:5]}, {column.stride(0) for column in columns[5:]}
        if any(len(strides) > 1 for strides in apart):  # whoever called copied some columns and not others
            columns = tuple(column.contiguous() for column in columns)
        return cls(*columns)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"SteerTable.{name} cannot be replaced: compiled code and CUDA graphs hold its address. "
            f"Write into it instead: table.{name}[...] = value"
        )

    def __reduce__(self) -> tuple:
        if self.record is not None:
            return SteerTable.of_record, (self.record, self.slots)
        return SteerTable, self.columns()

    @classmethod
    def of_record(cls, record: Tensor, slots: int) -> SteerTable:
        """The table whose rows lie in an int32 `[R, W]`, as `record` of another one has them."""
        wide = record.view(torch.float32)
        flags = record.view(torch.uint8)[:, 5 * slots * _WORD :]
        slotted = [
            (record if name == "direction" else wide)[:, i * slots : (i + 1) * slots]
            for i, name in enumerate(_SLOTTED)
        ]
        table = cls(*slotted, flags[:, 0], flags[:, 1])  # type: ignore[call-arg]
        object.__setattr__(table, "record", record)
        return table

    @classmethod
    def empty(cls, rows: int, slots: int = 1, *, device: torch.device | str = "cpu") -> SteerTable:
        """An idle table: every slot empty, no bounds, no rotation, norms not preserved."""
        for name, value in (("rows", rows), ("slots", slots)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        words = -(-(len(_SLOTTED) * slots + 1) // _RECORD_WORDS) * _RECORD_WORDS
        record = torch.zeros((rows, words), dtype=torch.int32, device=device)
        return cls.of_record(record, slots).clear_()

    @property
    def rows(self) -> int:
        return self.direction.shape[0]

    @property
    def slots(self) -> int:
        return self.direction.shape[1]

    @property
    def device(self) -> torch.device:
        return self.direction.device

    @property
    def strides(self) -> tuple[int, int]:
        """From a row to the next: 4-byte words of a slotted column, bytes of a flag."""
        return self.direction.stride(0), self.preserve_norm.stride(0)

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
        if self.direction.shape != other.direction.shape:
            raise ValueError(
                f"other has {other.rows} rows of {other.slots} slots, this table has {self.rows} of {self.slots}"
            )
        if self.record is not None and other.record is not None:
            self.record.copy_(other.record)
            return self
        for mine, theirs in zip(self.columns(), other.columns()):
            mine.copy_(theirs)
        return self

    def first(self, rows: int) -> SteerTable:
        """A table of its first rows, in the same memory."""
        if self.record is not None:
            return SteerTable.of_record(self.record[:rows], self.slots)
        return SteerTable(*(column[:rows] for column in self.columns()))

    def to(self, device: torch.device | str) -> SteerTable:
        """A copy on another device (the same table where it already lies there)."""
        if torch.device(device) == self.device:
            return self
        if self.record is not None:
            return SteerTable.of_record(self.record.to(device), self.slots)
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
        """What is wrong with the columns' shapes, dtypes and devices; reads no values."""
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

    def astray(self) -> Iterator[Exception]:
        """What is wrong with the columns for a kernel, which knows one stride for all slots and one for the flags."""
        yield from self.misshapen()
        for name in _COLUMNS:
            column, first = getattr(self, name), "direction" if name in _SLOTTED else "preserve_norm"
            line = getattr(self, first).stride(0)
            if self.rows > 1 and column.stride(0) != line:
                yield ValueError(
                    f"table.{name} has rows {column.stride(0)} entries apart and table.{first} {line}; they must "
                    f"lie alike: make every column contiguous, or the table by SteerTable.empty"
                )
            if name in _SLOTTED and self.slots > 1 and column.stride(1) != 1:
                yield ValueError(
                    f"table.{name} must be contiguous in its last dimension, got strides {column.stride()}"
                )

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
