"""Where the tokens of a forward pass stand in their sequence, for tokens chosen by index."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from emosteer.models.blocks import Decoder, find_decoder
from emosteer.models.caches import Filled

NO_ROW = -1


class Columns:
    """Token indices → `token_row`, once a forward pass.

    An index counts the columns of the sequence so far, cached ones included, so it means the same
    token in a prompt and in the decoding steps after it.

    Args:
        model: whose stack of blocks says how much is cached.

    Attributes:
        steers: whether any of the hooks of this patch runs on the kernels.
    """

    def __init__(self, model: nn.Module) -> None:
        self.steers = False
        self._model = model
        self._decoder: Decoder | None = None
        self._past = 0
        self._key: tuple = ()
        self._row: Tensor | None = None

    @property
    def wanted(self) -> bool:
        return self._decoder is not None

    def want(self) -> bool:
        """Find the stack; False where there is none."""
        if self._decoder is None:
            try:
                self._decoder = find_decoder(self._model)
            except ValueError:
                return False
        return True

    def watch(self) -> RemovableHandle:
        """Look at every pass as it starts, until the handle is removed."""
        assert self._decoder is not None  # asked for only where `wanted`
        return self._decoder.stack.register_forward_pre_hook(self._enter, with_kwargs=True)

    def _enter(self, _stack: nn.Module, _args: tuple, kwargs: dict[str, Any]) -> None:
        self._past, self._key = int(Filled([]).columns(kwargs) or 0), ()

    def fit(self, chosen: Any, hidden: Tensor) -> bool:
        """Whether a mask covers the tokens of a first pass; the library says what is wrong where not."""
        if not isinstance(chosen, Tensor):
            return True
        batch, length = hidden.shape[:2]
        rows = chosen.shape[0] if chosen.ndim > 1 else 1
        return chosen.ndim in (1, 2) and rows in (1, batch) and (self._past > 0 or chosen.shape[-1] >= length)

    def token_row(self, chosen: Any, hidden: Tensor) -> Tensor:
        """int32 `[B, T]`: 0 where a token is chosen, −1 elsewhere.

        Args:
            chosen: a slice or a list of indices, negative ones counting from the end of the sequence so
                far; or a mask `[L]` or `[B, L]`, zero beyond its end.
            hidden: `[B, T, D]`.

        Raises:
            IndexError: a listed index outside the sequence so far.
        """
        key = (hidden.shape[0], hidden.shape[1], hidden.device)
        if self._key == key and self._row is not None:
            return self._row
        batch, length = hidden.shape[:2]
        whole = self._past + length
        if isinstance(chosen, Tensor):
            mask = torch.zeros(chosen.shape[0] if chosen.ndim > 1 else 1, whole, device=chosen.device)
            known = min(whole, chosen.shape[-1])
            mask[:, :known] = chosen[..., :known]
        else:
            mask = torch.zeros(1, whole)
            mask[:, chosen] = 1
        kept = mask[:, self._past :].to(hidden.device) != 0
        self._row = torch.where(kept, 0, NO_ROW).to(torch.int32).expand(batch, length).contiguous()
        self._key = key
        return self._row
