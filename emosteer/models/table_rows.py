"""Programs → rows of a steering table, written in microseconds."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from emosteer.ops import SteerTable
from emosteer.programs import Program

# Rows that there is always room for: compiled code reads them all, and does not care how many are in use.
ROOM = 64


class TableRows:
    """A steering table and the programs in its rows.

    A program is packed into bytes once, whenever it is first seen; writing rows is then one join and
    a few strided copies. On a GPU the rows are written to a host copy and sent over, to the same
    addresses.

    Args:
        index: name → number of its direction; raises ValueError for a name it does not know.
        rows, slots: of the table.
        device: of the table.
        preserve_norm: for programs that do not say.
        relative: whether strengths and bounds are fractions of each token's own norm.

    Attributes:
        table: of `rows` rows.
        whole: the same with idle rows after it, up to a power of two.
    """

    def __init__(
        self,
        index: Callable[[str], int],
        rows: int,
        slots: int,
        *,
        device: torch.device,
        preserve_norm: bool,
        relative: bool,
    ) -> None:
        self._index = index
        self._preserve_norm = preserve_norm
        self._relative = relative
        self._packed: dict[Program, bytes] = {}
        self._programs = [Program()] * rows
        room = max(ROOM, 1 << (rows - 1).bit_length())
        with torch.inference_mode(False):
            host = SteerTable.empty(room, slots)
            self.whole = host if device.type == "cpu" else SteerTable.empty(room, slots, device=device)
        self._host, self.table = host.first(rows), self.whole.first(rows)
        if device.type == "cpu":
            self._host = self.table
        self._columns = [column.numpy() for column in self._host.columns()]
        self._words = [c.view(np.int32) if c.dtype != np.uint8 else c for c in self._columns]

    @property
    def programs(self) -> tuple[Program, ...]:
        return tuple(self._programs)

    def write(self, rows: Iterable[int], programs: Sequence[Program]) -> None:
        """Put programs into rows.

        Raises:
            IndexError: a row that the table does not have.
            ValueError: a program with more slots than the table, or with a name that is not in the bank.
        """
        rows = tuple(rows)
        count, slots = self._host.rows, self._host.slots
        for row in rows:
            if not isinstance(row, int) or not -count <= row < count:
                raise IndexError(f"row {row!r} is outside the table, which has rows 0 to {count - 1}")
        packed = self._packed
        try:
            data = b"".join([packed[program] for program in programs])
        except KeyError:
            for program in programs:
                if program not in packed:
                    packed[program] = self._pack(program)
            data = b"".join([packed[program] for program in programs])
        words = np.frombuffer(data, dtype=np.int32).reshape(len(rows), 5 * slots + 2)
        at: Any = slice(None) if rows == tuple(range(count)) else list(rows)
        if len(rows) == 1:  # a plain index writes faster than a list of one
            at, words = rows[0], words[0]
        for j in range(5):
            self._words[j][at] = words[..., j * slots : (j + 1) * slots]
        self._words[5][at] = words[..., -2]
        self._words[6][at] = words[..., -1]
        for row, program in zip(rows, programs):
            self._programs[row] = program
        if self.table is not self._host:
            self.table.copy_(self._host)

    def _pack(self, program: Program) -> bytes:
        slots = self._host.slots
        if len(program.slots) > slots:
            raise ValueError(
                f"program {program} combines {len(program.slots)} directions, the table has {slots} slots a row; "
                f"pass slots={len(program.slots)} to es.steer"
            )
        spare = slots - len(program.slots)
        inf = float("inf")
        directions = [self._index(slot.name) for slot in program.slots]
        columns = [
            struct.pack(f"{slots}i", *directions, *[-1] * spare),
            struct.pack(f"{slots}f", *(s.strength for s in program.slots), *[0.0] * spare),
            struct.pack(f"{slots}f", *(s.low for s in program.slots), *[-inf] * spare),
            struct.pack(f"{slots}f", *(s.high for s in program.slots), *[inf] * spare),
            struct.pack(f"{slots}f", *(s.rotate for s in program.slots), *[0.0] * spare),
            struct.pack("2i", program.norm_form(self._preserve_norm), int(self._relative)),
        ]
        return b"".join(columns)
