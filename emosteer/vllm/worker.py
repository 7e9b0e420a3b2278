"""Steering in one worker of vLLM: put into the model as it is loaded, and told before each pass what it is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .asking import Asked
from .deployment import Deployment, Placed
from .probe import prove
from .rows import Rows
from .settings import Settings
from .stream import blocks_of, patch
from .tokens import TokenRows


class RunnerPart(Protocol):
    """What differs between vLLM's model runners: where a pass's requests, spans and positions are to be found."""

    def attach(self, steering: WorkerSteering) -> None:
        """Have every pass of the runner told to `steering` before it runs, and every pass of nobody's too."""


class WorkerSteering:
    """The table, the tokens' rows and the programs of the requests that are known to a worker.

    Args:
        runner: vLLM's model runner, its model loaded.
        deployment: the banks.

    Attributes:
        tokens: what the blocks read.
        rows: the table.

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
            self.blocks = blocks_of(runner.model, deployment.depth)
            self.patched = patch(self.blocks, deployment, self.rows.table, self.tokens.value)
        self._placed: dict[str, tuple[Placed | None, int]] = {}

    def prove(self) -> None:
        """Show on a pass of nobody's that the next norm reads what is steered, at every steered layer."""
        prove(self)

    def add(self, request: str, params: Any, prompt: int) -> None:
        """A request is known from here on.

        Args:
            request: its id.
            params: its `SamplingParams`, None for pooling.
            prompt: tokens of its prompt.
        """
        asked = Asked.of(getattr(params, "extra_args", None))
        self._placed[request] = None if asked is None else self.deployment.placed(asked), prompt

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
            [one for one, _ in known], [prompt for _, prompt in known], starts, positions, tokens
        )

    def idle(self) -> None:
        """The next pass is nobody's."""
        self.tokens.clear()


def steer(runner: Any, settings: Settings) -> WorkerSteering:
    """Put steering into a runner whose model has just been loaded, and prove it."""
    model = runner.vllm_config.model_config
    deployment = Deployment(settings, model.get_total_num_hidden_layers(), model.get_hidden_size())
    steering = WorkerSteering(runner, deployment)
    part_of(runner).attach(steering)
    steering.prove()
    return steering


def part_of(runner: Any) -> RunnerPart:
    """What knows this runner."""
    from . import runner_v1, runner_v2

    return runner_v2.PART if hasattr(runner, "model_state") else runner_v1.PART


def _room(config: Any) -> int:
    """Tokens of the longest pass, with what CUDA graphs and parallel ranks pad it by."""
    scheduled = config.scheduler_config.max_num_batched_tokens
    captured = getattr(config.compilation_config, "max_cudagraph_capture_size", None) or 0
    return max(scheduled, captured) + 8 * config.parallel_config.tensor_parallel_size
