"""Steering in one worker of vLLM: the table, and what it is told before each pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .asking import Asked
from .deployment import Deployment, Placed
from .placed_reads import PlacedReads
from .rows import Rows
from .stream import blocks_of, patch
from .token_reads import TokenReads
from .tokens import TokenRows


class WorkerSteering:
    """The table, the tokens' rows and the programs of the requests that are known to a worker.

    Args:
        runner: vLLM's model runner, its model loaded.
        deployment: the banks.

    Attributes:
        tokens: what the blocks read.
        rows: the table.
        reads: what is read of a pass; None for an engine that reads nothing.

    Raises:
        UnknownStream: the model does not hand its stream on in a way that is known, or that proves itself.
    """

    def __init__(self, runner: Any, deployment: Deployment) -> None:
        config = runner.vllm_config
        self.deployment, self.runner = deployment, runner
        device = torch.device(runner.device)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        requests = config.scheduler_config.max_num_seqs
        in_flight = max(2, getattr(config, "max_concurrent_batches", 2))
        with torch.inference_mode(False):
            self.rows = Rows(deployment, 2 * requests, device, in_flight)
            self.tokens = TokenRows(self.rows, _room(config), requests, device, in_flight)
            self.reads: TokenReads | None = None
            if deployment.readable:
                self.reads = TokenReads(deployment, _room(config), requests, device, in_flight)
            self.blocks = blocks_of(runner.model, deployment.depth)
            read = (None, None) if self.reads is None else (self.reads.flags, self.reads.values)
            self.patched = patch(self.blocks, deployment, self.rows.table, self.tokens.value, *read)
        self._placed: dict[str, tuple[Placed | None, int, PlacedReads | None]] = {}

    def add(self, request: str, params: Any, prompt: int) -> None:
        """A request is known from here on.

        Args:
            request: its id.
            params: its `SamplingParams`, None for pooling.
            prompt: tokens of its prompt.
        """
        asked = Asked.of(getattr(params, "extra_args", None))
        if asked is None:
            self._placed[request] = None, prompt, None
        else:
            asked = asked.over(self.deployment.settings.default)
            placed, reads = self.deployment.placed(asked), self.deployment.reads(asked)
            self._placed[request] = placed, asked.prompt or prompt, reads

    def drop(self, request: str) -> None:
        """It is known no more; nothing else belongs to it."""
        self._placed.pop(request, None)

    def keep(self, requests: Mapping[str, Any]) -> None:
        """Drop all but these, of which each was added."""
        if len(self._placed) > len(requests):
            self._placed = {name: known for name, known in self._placed.items() if name in requests}

    def knows(self, request: str) -> bool:
        """Whether it was added and not dropped."""
        return request in self._placed

    def begin(self, requests: list[str], starts: Tensor, positions: Tensor, tokens: int) -> None:
        """The next pass is about these requests; arguments as `TokenRows.fill`.

        Raises:
            KeyError: a request that is not known: the engine must end, since it would run unsteered.
        """
        known = [self._placed[request] for request in requests]
        self.tokens.fill(
            [one for one, _, _ in known], [prompt for _, prompt, _ in known], starts, positions, tokens
        )
        if self.reads is not None:
            self.reads.fill(requests, [reads for _, _, reads in known], starts, positions, tokens)

    def idle(self) -> None:
        """The next pass is nobody's."""
        self.tokens.clear()
        if self.reads is not None:
            self.reads.clear()


def _room(config: Any) -> int:
    """Tokens of the longest pass, with what CUDA graphs and parallel ranks pad it by."""
    scheduled = config.scheduler_config.max_num_batched_tokens
    captured = getattr(config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return max(scheduled, captured) + 8 * config.parallel_config.tensor_parallel_size
