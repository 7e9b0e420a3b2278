"""What a pass reads: which of its tokens, and the projections of their streams, brought to the host with its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emosteer.models.staging import Ring

from .deployment import Deployment
from .placed_reads import PlacedReads

# Of a request: the places that a pass has computed, and the readings there `[places, items]`.
Found = tuple[np.ndarray, np.ndarray]
# The attribute of vLLM's `ModelRunnerOutput` that holds them by request.
ATTRIBUTE = "emosteer_readings"


class TokenReads:
    """The flags that the readable blocks read, and the buffers that they write.

    Args:
        deployment: the banks, and at which layers.
        tokens: of a pass at most, padding included.
        requests: of a pass at most.
        device: of the model.
        in_flight: passes that may be launched before the first of them has run.

    Attributes:
        flags: int32 `[tokens]`: 1 for those that are read.
        values: layer → float32 `[tokens, K]`.
    """

    def __init__(
        self, deployment: Deployment, tokens: int, requests: int, device: torch.device, in_flight: int = 2
    ) -> None:
        self.flags = torch.zeros(tokens, dtype=torch.int32, device=device)
        shape = tokens, deployment.directions_count
        self.values = {layer: torch.zeros(shape, device=device) for layer in deployment.readable}
        self._token = torch.arange(tokens, dtype=torch.int32, device=device)
        self._reading = torch.zeros(requests, dtype=torch.int32, device=device)
        like = torch.zeros(requests, dtype=torch.int32)
        self._ring = None if device.type == "cpu" else Ring(like, device, depth=2 * in_flight)
        self._filled = 0
        self._batch: list[bool] = []
        self._now: _Pass | None = None

    def fill(
        self,
        names: Sequence[str],
        reads: Sequence[PlacedReads | None],
        starts: Tensor,
        positions: Tensor,
        tokens: int,
    ) -> None:
        """Say what the next pass is about.

        Args:
            names: of the requests, in the order of the batch.
            reads: of each.
            starts, positions, tokens: as for `TokenRows.fill`.
        """
        if not any(reads):
            self.clear()
            return
        count = len(reads)
        batch = [one is not None for one in reads]
        if batch != self._batch:
            given = torch.tensor(batch, dtype=torch.int32)
            if self._ring is None:
                self._reading[:count] = given
            else:
                self._ring.send(given, self._reading[:count])
            self._batch = batch
        request = torch.searchsorted(starts[1 : count + 1], self._token[:tokens], right=True, out_int32=True)
        self.flags[:tokens] = self._reading[request]
        if self._filled > tokens:
            self.flags[tokens : self._filled] = 0
        self._filled = tokens
        self._now = _Pass(
            list(names), list(reads), starts[: count + 1].clone(), positions[:tokens].clone(), tokens
        )

    def clear(self) -> None:
        """The next pass is nobody's, or nobody reads in it."""
        self._now = None
        if self._filled:
            self.flags[: self._filled] = 0
            self._filled = 0

    def every(self, tokens: int) -> None:
        """The next pass is read at all of its tokens, for nobody."""
        self._now = None
        self.flags[:tokens] = 1
        self._filled = max(self._filled, tokens)

    def taken(self) -> Taken | None:
        """What the pass that was launched last reads, on its way to the host; None where it reads nothing."""
        now, self._now = self._now, None
        if now is None:
            return None
        wanted = [one for one in now.reads if one is not None]
        layers = sorted({layer for one in wanted for layer in one.layers})
        columns = sorted({column for one in wanted for column in one.columns})
        at = torch.tensor(columns)
        if now.starts.device.type == "cuda":
            at = at.pin_memory().to(now.starts.device, non_blocking=True)
        values = torch.stack([self.values[layer][: now.tokens].index_select(1, at) for layer in layers])
        found = [values, now.places, now.starts]
        event = None
        if values.device.type == "cuda":
            found = [
                torch.empty_like(one, device="cpu", pin_memory=True).copy_(one, non_blocking=True)
                for one in found
            ]
            event = torch.cuda.Event()
            event.record()
        return Taken(now.names, now.reads, layers, columns, found, event)


@dataclass
class _Pass:
    names: list[str]
    reads: list[PlacedReads | None]
    starts: Tensor
    places: Tensor
    tokens: int


@dataclass
class Taken:
    """The readings of a pass, there when its event has passed."""

    names: list[str]
    reads: list[PlacedReads | None]
    layers: list[int]
    columns: list[int]
    found: list[Tensor]
    event: Any

    def by_request(self) -> dict[str, Found]:
        """The readings of each request that reads; waits for the copy."""
        if self.event is not None:
            self.event.synchronize()
        values, places, starts = (one.numpy() for one in self.found)
        layer_at = {layer: k for k, layer in enumerate(self.layers)}
        column_at = {column: k for k, column in enumerate(self.columns)}
        found = {}
        for name, one, begin, end in zip(self.names, self.reads, starts, starts[1:]):
            if one is None:
                continue
            which = [layer_at[layer] for layer in one.layers], [column_at[column] for column in one.columns]
            mine = values[:, begin:end][which[0]][:, :, which[1]].astype(np.float64)
            items = mine.transpose(1, 0, 2).reshape(end - begin, -1)
            found[name] = places[begin:end].copy(), (items - one.offset) * one.scale
        return found


def bring(runner: Any, reads: TokenReads) -> None:
    """Have what a runner hands out after each pass hold what the pass has read."""
    from vllm.v1.outputs import AsyncModelRunnerOutput

    class Later(AsyncModelRunnerOutput):
        def __init__(self, output: Any, taken: Taken) -> None:
            self._output, self._taken = output, taken

        def get_output(self) -> Any:
            return _with(self._output.get_output(), self._taken)

    sample = runner.sample_tokens

    def sample_tokens(*args: Any, **kwargs: Any) -> Any:
        taken = reads.taken()
        output = sample(*args, **kwargs)
        if taken is None:
            return output
        return Later(output, taken) if isinstance(output, AsyncModelRunnerOutput) else _with(output, taken)

    runner.sample_tokens = sample_tokens


def _with(output: Any, taken: Taken) -> Any:
    setattr(output, ATTRIBUTE, taken.by_request())
    return output
