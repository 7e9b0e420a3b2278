"""Which row of the steering table each token of a pass takes: −1 for tokens that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from emosteer.models.positions import ENDLESS, chosen
from emosteer.models.staging import Ring

from .deployment import Placed
from .rows import NO_ROW, Rows

# Requests of the pass that proves the steering at start (`probe`), of one token each: there is room for them however
# few may run together.
TRIAL = 8
# Numbers of a request: its row, the length of its prompt, `Positions.numbers`; the last do not matter where no row is.
_COLUMNS = 7
_NOWHERE = np.array([0, 0, 0, 0, 1], dtype=np.int64).tobytes()
# Of the edges of masks: those of request `r` are counted from `r · _APART`; without a mask all positions lie inside.
_APART = 2 * ENDLESS
_INSIDE = np.array([0, ENDLESS], dtype=np.int64).tobytes()


class TokenRows:
    """The vector that all steered blocks read.

    Positions are those that the runner computes with, on its device: a token of a prompt that comes in chunks, of a
    request that was preempted and starts anew, or a draft that may yet be rejected counts as the place it stands for.
    Prompts end where the user's prompt ends, whatever was computed before.

    Args:
        rows: the table.
        tokens: of a pass at most, padding included.
        requests: of a pass at most.
        device: of the model.
        in_flight: as for `Rows`.

    Attributes:
        value: int32 `[tokens]`.
    """

    def __init__(
        self, rows: Rows, tokens: int, requests: int, device: torch.device, in_flight: int = 2
    ) -> None:
        self._rows = rows
        self.value = torch.full((tokens,), NO_ROW, dtype=torch.int32, device=device)
        self._token = torch.arange(tokens, dtype=torch.int32, device=device)
        self._filled = 0
        self._batch: tuple[list, list] | None = None  # whose numbers are on the device
        host = torch.zeros((max(requests, TRIAL), _COLUMNS), dtype=torch.int64)
        self._staged = host.numpy()
        self._numbers = host.to(device)
        self._depth = 2 * in_flight
        self._ring = None if device.type == "cpu" else Ring(host, device, depth=self._depth)
        self._edges = host.new_empty(0).to(device)
        self._edges_ring: Ring | None = None
        self._edges_count: int | None = None  # of the requests whose numbers are there; None: none has a mask

    def fill(
        self,
        placed: Sequence[Placed | None],
        prompts: Sequence[int],
        starts: Tensor,
        positions: Tensor,
        tokens: int,
    ) -> None:
        """Say what the next pass is about.

        Args:
            placed: of each request, in the order of the batch.
            prompts: tokens of each one's prompt.
            starts: `[requests + 1]`, where each one's tokens start in the batch, on the device.
            positions: `[at least tokens]`, the place of each token in its text, on the device.
            tokens: of the pass, padding excepted.
        """
        if not any(placed):
            self.clear()
            return
        count = len(placed)
        batch = [*placed], [*prompts]
        if batch != self._batch:  # as a rule the same requests go on, and their numbers are there
            self._batch = None
            self._send(placed, prompts)
            self._batch = batch
        request = torch.searchsorted(starts[1 : count + 1], self._token[:tokens], right=True, out_int32=True)
        row, prompt, *where = self._numbers[request].unbind(1)
        keep = chosen(positions[:tokens], prompt, where)
        if self._edges_count is not None:
            at = request.long() * _APART + positions[:tokens]
            keep &= torch.searchsorted(self._edges[: self._edges_count], at, right=True) % 2 == 1
        self.value[:tokens] = torch.where(keep, row, NO_ROW)
        if self._filled > tokens:
            self.value[tokens : self._filled] = NO_ROW
        self._filled = tokens

    def _send(self, placed: Sequence[Placed | None], prompts: Sequence[int]) -> None:
        count = len(placed)
        staged = self._staged[:count]
        staged[:, 0], staged[:, 1] = self._rows.of(placed), prompts
        where = b"".join([_NOWHERE if one is None else one.where for one in placed])
        staged[:, 2:] = np.frombuffer(where, dtype=np.int64).reshape(count, -1)
        given = torch.from_numpy(staged)
        if self._ring is None:
            self._numbers[:count] = given
        else:
            self._ring.send(given, self._numbers[:count])
        self._edges_count = None
        if any(one is not None and one.edges is not None for one in placed):
            self._send_edges([_INSIDE if one is None or one.edges is None else one.edges for one in placed])

    def _send_edges(self, of: Sequence[bytes]) -> None:
        """Where the runs of the masks begin and end, one request behind the other: ascending all over."""
        counts = [len(one) // 8 for one in of]
        apart = np.repeat(np.arange(len(of), dtype=np.int64) * _APART, counts)
        given = torch.from_numpy(np.frombuffer(b"".join(of), dtype=np.int64) + apart)
        if len(given) > len(self._edges):
            room = torch.empty(1 << (len(given) - 1).bit_length(), dtype=torch.int64)
            device = self._edges.device
            self._edges = room.to(device)
            self._edges_ring = None if device.type == "cpu" else Ring(room, device, depth=self._depth)
        if self._edges_ring is None:
            self._edges[: len(given)] = given
        else:
            self._edges_ring.send(given, self._edges[: len(given)])
        self._edges_count = len(given)

    def clear(self) -> None:
        """The next pass is nobody's, or nobody's in it is steered."""
        if self._filled:
            self.value[: self._filled] = NO_ROW
            self._filled = 0
