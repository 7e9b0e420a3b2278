"""A model's `generate` while it is steered: tells the passes inside what their prompts are."""

from __future__ import annotations

import threading
from typing import Any

import torch

from .levels import Level
from .patching import Replacement
from .positions import Positions
from .prompts import prompt_of, virtual_tokens

# Methods that pack the requests of many callers into one row of tokens.
PACKED = ("generate_batch", "init_continuous_batching", "continuous_batching_context_manager")


class GenerateCall(Replacement):
    """`generate`: notes the prompts for as long as it runs."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level

    def steers(self, model: Any, positions: Positions, device: torch.device) -> None:
        """Take over a steering of a model, whose token ids are on `device`."""
        self.model, self.positions, self.device = model, positions, device

    def gone(self) -> None:
        super().gone()
        self.model = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        level = self.level
        now = level.now
        if not level.active or now.asking:
            return self.original(*args, **kwargs)
        texts = now.texts(self.device)
        asked = kwargs.get("generation_config") or getattr(self.model, "generation_config", None)

        def setting(name: str) -> Any:
            return kwargs.get(name, getattr(asked, name, None))

        prompt = texts.prompt
        if prompt is None:
            prompt = prompt_of(args, kwargs, setting("pad_token_id"), setting("eos_token_id"))
            prompt = None if prompt is None else prompt.after(virtual_tokens(self.model))
        guided = self.positions.needs_prompt and setting("guidance_scale") not in (None, 1, 1.0)
        if guided and setting("use_cache") is False:
            raise ValueError(
                "guidance_scale with use_cache=False runs two texts that cannot be told apart, and positions "
                "that count from the prompt depend on which; leave the cache on"
            )
        level.asking.add(threading.get_ident())
        now.asking, now.guided, now.cache, now.beside = True, guided, None, None
        try:
            with texts.saying(prompt, texts.assigned):
                return self.original(*args, **kwargs)
        finally:
            now.asking, now.guided, now.cache, now.beside = False, False, None, None
            level.asking.discard(threading.get_ident())


class PackedCall(Replacement):
    """A method that packs requests: refused where a token's text or position would have to be known."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level
        self.positions = Positions("all", 1)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.level.active and (self.positions.rows > 1 or not self.positions.everything):
            raise ValueError(
                f"{self.name} packs many requests into one row of tokens, which does not say whose a token is; "
                f'steer it with one program and positions="all", or use generate, es.Sweep or vLLM'
            )
        return self.original(*args, **kwargs)
