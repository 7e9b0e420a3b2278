"""Draws each request's tokens with its own random numbers, those of every other engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from ...plan.generation import Generation
from .asked import SEED, SETTINGS


class DrawnTokens(AdapterLogitsProcessor):
    """Leaves nothing but the drawn token, so that greedy search takes it."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)
        self._generation = Generation(**json.loads(vllm_config.additional_config[SETTINGS]))

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: Any) -> Callable[..., Tensor] | None:
        seed = (getattr(params, "extra_args", None) or {}).get(SEED)
        return None if seed is None else _Drawn(self._generation, seed)


class _Drawn:
    """The draws of one request."""

    def __init__(self, generation: Generation, seed: int) -> None:
        self._generation, self._seed = generation, seed
        self._uniforms: Tensor | None = None

    def __call__(self, prompt: list[int], output: list[int], logits: Tensor) -> Tensor:
        if self._uniforms is None:
            self._uniforms = self._generation.uniforms(self._seed, prompt)
        assert self._uniforms is not None
        step = len(output)
        token = self._generation.choose(logits[None], self._uniforms[step : step + 1])
        return torch.full_like(logits, -torch.inf).index_fill_(0, token, 0.0)
