"""Steering put into a worker's model as it is loaded, and proved there."""

from __future__ import annotations

from typing import Any, Protocol

from . import runner_v1, runner_v2
from .deployment import Deployment
from .probe import prove
from .settings import Settings
from .token_reads import bring
from .worker import WorkerSteering


class RunnerPart(Protocol):
    """What differs between vLLM's model runners: where a pass's requests, spans and positions are to be found."""

    def attach(self, steering: WorkerSteering) -> None:
        """Have every pass of the runner told to `steering` before it runs, and every pass of nobody's too."""


def steer(runner: Any, settings: Settings) -> WorkerSteering:
    """Put steering into a runner whose model has just been loaded, and prove it."""
    model = runner.vllm_config.model_config
    deployment = Deployment(settings, model.get_total_num_hidden_layers(), model.get_hidden_size())
    steering = WorkerSteering(runner, deployment)
    part_of(runner).attach(steering)
    if steering.reads is not None:
        bring(runner, steering.reads)
    prove(steering)
    return steering


def part_of(runner: Any) -> RunnerPart:
    """What knows this runner."""
    return runner_v2.PART if hasattr(runner, "model_state") else runner_v1.PART
