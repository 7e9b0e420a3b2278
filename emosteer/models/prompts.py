"""The prompts of a `generate` call: which of their columns are tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Prompt:
    """What `generate` was called with: which columns of the prompt are tokens, one row a prompt."""

    mask: Tensor  # bool [B, P]

    @property
    def length(self) -> Tensor:
        return self.mask.sum(1)

    @property
    def columns(self) -> int:
        return self.mask.shape[1]

    def after(self, columns: int) -> Prompt:
        """The same prompt after so many columns of learned tokens, which count as its first ones."""
        return Prompt(nn.functional.pad(self.mask, (columns, 0), value=True)) if columns else self


def prompt_of(args: tuple, kwargs: dict[str, Any], pad: int | None, eos: Any) -> Prompt | None:
    """The prompt of a `generate` call, None where it has no tokens to look at.

    Without an attention mask, padding is what generate itself takes for it: the pad token, unless
    that also ends texts.
    """
    ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
    if ids is None:
        ids = kwargs.get("inputs_embeds")
    if not isinstance(ids, Tensor) or ids.ndim < 2:
        return None
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == ids.shape[1]:
        return Prompt(mask != 0)
    ends = eos if isinstance(eos, (list, tuple)) else [eos]
    if ids.ndim == 2 and pad is not None and pad not in ends and bool((ids == pad).any()):
        return Prompt(ids != pad)
    return Prompt(torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device))


def virtual_tokens(model: Any) -> int:
    """How many learned columns a PEFT model puts in front of every text (prompt and prefix tuning)."""
    return getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0
