"""How text is generated: the settings, and the choice of a token with each sequence's own random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .identity import digest


@dataclass(frozen=True)
class Generation:
    """Settings of generated text.

    Attributes:
        max_new_tokens: at most; a text ends earlier at the model's own end of text.
        temperature: 0 for the likeliest token at each step.
        top_k: only so many likeliest tokens are drawn from; 0 for all.
        top_p: only the likeliest tokens whose probabilities reach this sum; 1 for all.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, low in (("max_new_tokens", 1), ("top_k", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be an integer of at least {low}, got {value!r}")
        if not (isinstance(self.temperature, (int, float)) and 0 <= self.temperature < math.inf):
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature!r}")
        if not (isinstance(self.top_p, (int, float)) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p!r}")

    def definition(self) -> dict[str, Any]:
        """What determines a text; what a temperature of 0 ignores is left out."""
        return asdict(self) if self.temperature else {"max_new_tokens": self.max_new_tokens}

    def uniforms(self, seed: int, prompt: Sequence[int]) -> Tensor | None:
        """float64 `[max_new_tokens]` in [0, 1), one a step, of a seed and prompt; None where nothing is drawn.

        All programs of a prompt and seed share them (common random numbers), so that differences
        between programs are due to the programs; a sequence's own mates never matter.
        """
        if not self.temperature:
            return None
        own = int(digest(seed, list(prompt), size=7), 16)
        generator = torch.Generator().manual_seed(own)
        return torch.rand(self.max_new_tokens, generator=generator, dtype=torch.float64)

    def choose(self, logits: Tensor, uniforms: Tensor | None) -> Tensor:
        """int64 `[B]`: the next token of each sequence.

        Args:
            logits: `[B, V]`.
            uniforms: float64 `[B]` in [0, 1), for a temperature above 0.
        """
        if not self.temperature:
            return logits.argmax(-1)
        assert uniforms is not None
        logits = logits.float() / self.temperature
        if self.top_k:
            kth = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -math.inf)
        if self.top_p < 1:
            ranked, order = logits.sort(descending=True)
            before = ranked.softmax(-1).cumsum(-1) - ranked.softmax(-1)
            ranked = ranked.masked_fill(before >= self.top_p, -math.inf)
            logits = torch.full_like(logits, -math.inf).scatter(-1, order, ranked)
        total = logits.double().softmax(-1).cumsum(-1)
        drawn = uniforms.to(total.device)[:, None] * total[:, -1:]
        return torch.searchsorted(total, drawn, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
