"""Rows of a steering table that programs hold while they run; the longest idle one makes room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from emosteer.programs import Program

# Rows of the table: programs that are at hand without being written again.
TABLE_ROWS = 2048

NO_ROW = -1


class HeldRows:
    """Which row each program has.

    Args:
        write: puts a program into a row.
        rows: of the table.
    """

    def __init__(self, write: Callable[[int, Program], None], rows: int = TABLE_ROWS) -> None:
        self._write, self._rows = write, rows
        self._row: OrderedDict[Program, int] = OrderedDict()
        self._held: dict[Program, int] = {}
        self._free = list(range(rows - 1, -1, -1))

    def hold(self, program: Program) -> int:
        """The row of a program, written if need be, NO_ROW for the empty one; `release` as often."""
        if not program.slots:
            return NO_ROW
        row = self._row.get(program)
        if row is None:
            row = self._free.pop() if self._free else self._evict()
            self._write(row, program)
            self._row[program] = row
        self._row.move_to_end(program)
        self._held[program] = self._held.get(program, 0) + 1
        return row

    def release(self, program: Program) -> None:
        """One holder is done with the row."""
        if program.slots:
            self._held[program] -= 1
            if not self._held[program]:
                del self._held[program]

    def _evict(self) -> int:
        oldest = next((program for program in self._row if program not in self._held), None)
        if oldest is None:
            raise RuntimeError(f"more than {self._rows} programs run at once")
        return self._row.pop(oldest)
