"""The rows of the steering table: equal programs share one, and a row that no running request needs is given away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from emosteer.models.staging import Ring

from .deployment import Deployment, Placed

NO_ROW = -1


class Rows:
    """Programs of a pass → rows of the table.

    A row is held by the passes that use it, not by requests: a program keeps its row until another one needs it,
    and then the row that was used longest ago is written anew. A request that ended, was aborted or preempted
    holds nothing. With one row a request that can run in a pass there is always one to be had.

    Args:
        deployment: what a row consists of.
        count: number of rows R, at least the requests of a pass.
        device: of the model.
        in_flight: passes that may be launched before the first of them has run.

    Attributes:
        table: int32 `[R, W]` on the device.
    """

    def __init__(self, deployment: Deployment, count: int, device: torch.device, in_flight: int = 2) -> None:
        self.count = count
        host = torch.zeros((count, deployment.row_words), dtype=torch.int32)
        deployment.table(host).clear_()
        self._host, self._words = host, host.numpy()
        self.table: Tensor = host if device.type == "cpu" else host.to(device)
        # Each pass changes rows at most once; a copy may wait for those of all passes in flight.
        self._ring = None if device.type == "cpu" else Ring(host, device, depth=2 * in_flight)
        self._row: dict[bytes, int] = {}
        self._program = np.full(count, None, dtype=object)  # bytes in each row that has one
        self._used = np.zeros(count, dtype=np.int64)
        self._pass = 0

    def of(self, placed: Sequence[Placed | None]) -> list[int]:
        """The row of each request of a pass, −1 for those that are not steered; the rows hold what they say from
        here on, in the order of the device's stream.
        """
        self._pass += 1
        known = self._row
        rows = [NO_ROW if one is None else known.get(one.row, NO_ROW) for one in placed]
        self._used[[row for row in rows if row != NO_ROW]] = self._pass
        new = dict.fromkeys([one.row for one, row in zip(placed, rows) if one is not None and row == NO_ROW])
        if not new:
            return rows
        changed = self._written([*new])
        rows = [NO_ROW if one is None else known[one.row] for one in placed]
        if self._ring is not None:
            part = slice(int(changed.min()), int(changed.max()) + 1)
            self._ring.send(self._host[part], self.table[part])
        return rows

    def _written(self, programs: list[bytes]) -> np.ndarray:
        """Rows that no request of this pass uses, those used longest ago, with the programs in them."""
        count = len(programs)
        free = int((self._used < self._pass).sum())
        if count > free:
            raise RuntimeError(f"a pass has more programs than the steering table has rows, {self.count}")
        rows = np.argpartition(self._used, count - 1)[:count]
        for before in self._program[rows].tolist():
            self._row.pop(before, None)
        self._row.update(zip(programs, rows.tolist()))
        self._program[rows] = np.array(programs, dtype=object)
        self._words[rows] = np.frombuffer(b"".join(programs), dtype=np.int32).reshape(count, -1)
        self._used[rows] = self._pass
        return rows

    def __len__(self) -> int:
        """How many rows hold a program."""
        return len(self._row)
