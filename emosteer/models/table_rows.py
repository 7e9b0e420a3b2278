"""Programs → rows of a steering table, written in microseconds."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.graph import increment_version

from emosteer.ops import SteerTable
from emosteer.programs import Program

from .staging import Ring

# Rows that there is always room for: compiled code reads them all, and does not care how many are in use.
ROOM = 64
# The largest number of float32.
_LARGEST = (2 - 2**-23) * 2.0**127


@dataclass
class Replica:
    """A table on one device, with and without its idle rows, and how changes get there; the host's own has no ring."""

    table: SteerTable
    whole: SteerTable
    ring: Ring | None = None


class TableRows:
    """A steering table and the programs in its rows.

    A program is packed into the bytes of its record once, whenever it is first seen; writing rows is then one
    join and one copy. On a GPU the records are written to a host copy and sent over by one more (`Ring`), to
    the same addresses and between two steps.

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
            whole = SteerTable.empty(room, slots)
            self._host = whole.first(rows)
        assert self._host.record is not None
        self._record = self._host.record
        self._words = self._record.numpy()
        self._replicas: dict[torch.device, Replica] = {torch.device("cpu"): Replica(self._host, whole)}
        self.table, self.whole = self.on(device), self.whole_on(device)

    @property
    def programs(self) -> tuple[Program, ...]:
        return tuple(self._programs)

    def on(self, device: torch.device) -> SteerTable:
        """The table for what runs on a device: the same programs now and after every change."""
        return self._replica(device).table

    def whole_on(self, device: torch.device) -> SteerTable:
        """`on`, with the idle rows after it."""
        return self._replica(device).whole

    def _replica(self, device: torch.device) -> Replica:
        device = torch.device("cpu") if device.type == "cpu" else device
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._replicas:
            with torch.inference_mode(False):
                whole = self._replicas[torch.device("cpu")].whole.to(device)
                made = Replica(whole.first(self._host.rows), whole, Ring(self._record, device))
            self._replicas[device] = made
        return self._replicas[device]

    def write(self, rows: Iterable[int], programs: Sequence[Program]) -> None:
        """Put programs into rows.

        Raises:
            IndexError: a row that the table does not have.
            ValueError: a program with more slots than the table, or with a name that is not in the bank.
            RuntimeError: a CUDA graph is being captured.
        """
        rows = tuple(rows)
        count = self._host.rows
        for row in rows:
            if not isinstance(row, int) or not -count <= row < count:
                raise IndexError(f"row {row!r} is outside the table, which has rows 0 to {count - 1}")
        sent = [replica for replica in self._replicas.values() if replica.ring is not None]
        for replica in sent:
            replica.ring.require_no_capture()  # type: ignore[union-attr]  # those that have one
        packed = self._packed
        try:
            data = b"".join([packed[program] for program in programs])
        except KeyError:
            for program in programs:
                if program not in packed:
                    packed[program] = self._pack(program)
            data = b"".join([packed[program] for program in programs])
        words = np.frombuffer(data, dtype=np.int32).reshape(len(rows), self._words.shape[1])
        at: Any = slice(None) if rows == tuple(range(count)) else list(rows)
        if len(rows) == 1:  # a plain index writes faster than a list of one
            at, words = rows[0], words[0]
        self._words[at] = words
        increment_version(self._record)  # written past autograd, which then notices a gradient of before
        for row, program in zip(rows, programs):
            self._programs[row] = program
        if rows and sent:
            places = [row % count for row in rows]
            part = slice(min(places), max(places) + 1)
            for replica in sent:
                assert replica.ring is not None and replica.table.record is not None  # noqa: PT018
                replica.ring.send(self._record[part], replica.table.record[part])

    def _pack(self, program: Program) -> bytes:
        slots = self._host.slots
        if len(program.slots) > slots:
            raise ValueError(
                f"program {program} combines {len(program.slots)} directions, the table has {slots} slots a row; "
                f"pass slots={len(program.slots)} to es.steer"
            )
        data = packed(program, slots, self._index, preserve_norm=self._preserve_norm, relative=self._relative)
        return data.ljust(self._words.shape[1] * 4, b"\0")


def packed(
    program: Program, slots: int, index: Callable[[str], int], *, preserve_norm: bool, relative: bool
) -> bytes:
    """A program as the bytes of its record (`SteerTable.record`), in whole words, without what fills it up.

    Args:
        program: of at most so many slots.
        slots: of the table.
        index, preserve_norm, relative: as in `TableRows`.

    Raises:
        ValueError: a name that is not in the bank, a number that float32 cannot hold.
    """
    spare = slots - len(program.slots)
    inf = float("inf")
    directions = [index(slot.name) for slot in program.slots]
    numbers = [
        (*(s.strength for s in program.slots), *[0.0] * spare),
        (*(s.low for s in program.slots), *[-inf] * spare),
        (*(s.high for s in program.slots), *[inf] * spare),
        (*(s.rotate for s in program.slots), *[0.0] * spare),
    ]
    columns = [struct.pack(f"{slots}f", *column) for column in numbers]
    if any(abs(number) > _LARGEST and number - number == 0 for column in numbers for number in column):
        raise ValueError(f"program {program} has a number that float32 cannot hold")
    flags = struct.pack("2B2x", program.norm_form(preserve_norm), relative)
    return b"".join([struct.pack(f"{slots}i", *directions, *[-1] * spare), *columns, flags])
