"""One forward pass over new tokens behind what is cached: from any block on, with the logits that are wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from emosteer.models.blocks import find_decoder, probing
from emosteer.models.caches import as_argument
from emosteer.models.patching import Patches, evaluating, first_tensor, unwrap, with_first_tensor
from emosteer.models.scoring import device_of

from .trimming import Trimming


class _Enough(Exception):
    """Nothing after this block is wanted."""


class Passes:
    """A model whose passes may begin after a block, end after one, be looked at, and head only some tokens.

    Patches lie under those of a steering that is attached later, so a pass that begins after block `l`
    is still steered there. Idle, they change nothing.

    Args:
        model: a causal language model; runs in eval mode, eagerly, without gradients.
    """

    def __init__(self, model: Any) -> None:
        self.model = unwrap(model)
        self.decoder = find_decoder(self.model)
        self.device = device_of(self.model)
        self._patches: Patches | None = None
        self._outputs: dict[int, Any] = {}
        self._start: Tensor | None = None
        self._first, self._last = 0, self.decoder.depth - 1
        self._watch: Mapping[int, Callable[[Tensor], None]] = {}
        self._wanted: Tensor | None = None
        self._headed = False
        self.trimming = Trimming(self.decoder.blocks[-1])

    def __enter__(self) -> Passes:
        self._patches = Patches()
        try:
            for layer, block in enumerate(self.decoder.blocks):
                self._patches.replace(block, "forward", self._block(layer))
            self.trimming.patch(self._patches)
            head = getattr(self.model, "get_output_embeddings", lambda: None)()
            if head is not None:
                self._patches.replace(head, "forward", self._head)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        patches, self._patches = self._patches, None
        if patches is not None:
            patches.undo()

    def __call__(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        start: Tensor | None = None,
        first: int = 0,
        last: int | None = None,
        watch: Mapping[int, Callable[[Tensor], None]] | None = None,
        wanted: Sequence[int] | Tensor | None = None,
    ) -> Tensor | None:
        """Run the blocks `first` to `last` over new tokens.

        Args:
            ids: int64 `[B, n]`, on any device.
            mask, position_ids: of cached and new columns `[B, p + n]`; of the new ones `[B, n]`.
            cache: keys and values of the `p` columns before; takes up the new ones.
            start: `[B, n, D]`, the stream before block `first`, if that is not 0. It is written to.
            watch: block → called with the stream after it, `[B, n, D]`, to be read at once.
            wanted: tokens whose logits are wanted, counted through the batch (`row · n + column`).

        Returns:
            `[len(wanted), V]`; None where the pass ends before the head or nothing is wanted.
        """
        self._start, self._first = start, first
        self._last = self.decoder.depth - 1 if last is None else last
        self._watch = watch or {}
        self._headed = False
        self._wanted = None if wanted is None else torch.as_tensor(wanted, device=self.device)
        if self._wanted is not None and self.decoder.depth - 1 not in self._watch:
            few = 2 * len(self._wanted) <= ids.numel()  # else picking them out costs more than it saves
            self.trimming.wanted = self._wanted if few else None
        extra = as_argument(self.model, cache)
        if wanted is None:
            extra["logits_to_keep"] = 1
        try:
            with evaluating(self.model), torch.no_grad(), torch.compiler.set_stance("force_eager"):
                logits = self.model(
                    input_ids=ids.to(self.device),
                    attention_mask=mask,
                    position_ids=position_ids,
                    use_cache=cache is not None,
                    **extra,
                ).logits
        except _Enough:
            return None
        finally:
            self._start, self._first, self._last = None, 0, self.decoder.depth - 1
            self._watch, picked, self._wanted = {}, self._wanted, None
            self.trimming.wanted = None
        if picked is None:
            return None
        if not self._headed:
            return logits.reshape(-1, logits.shape[-1])[picked]
        assert logits.shape[1] == len(picked)
        return logits[0]

    def _block(self, layer: int) -> Callable[[Callable], Callable]:
        def make(forward: Callable) -> Callable:
            def run(*args: Any, **kwargs: Any) -> Any:
                if layer < self._first and self._start is not None and not probing():
                    return with_first_tensor(self._outputs.get(layer, self._start), self._start)
                output = forward(*args, **kwargs)
                if probing():
                    return output
                if layer not in self._outputs:
                    self._outputs[layer] = _shape_of(output)
                if layer in self._watch:
                    hidden = first_tensor(output)
                    assert hidden is not None  # find_decoder has seen it
                    self._watch[layer](hidden)
                if layer == self._last and layer < self.decoder.depth - 1:
                    raise _Enough
                return output

            return run

        return make

    def _head(self, forward: Callable) -> Callable:
        def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._wanted is None or probing() or hidden.ndim != 3:
                return forward(hidden, *args, **kwargs)
            self._headed = True
            return forward(hidden.reshape(1, -1, hidden.shape[-1])[:, self._wanted], *args, **kwargs)

        return run


def _shape_of(output: Any) -> Any:
    """A block's output without its tensors: what a pass that begins later hands on in its stead."""
    if isinstance(output, torch.Tensor):
        return output.new_empty(0)
    return type(output)(None if isinstance(part, torch.Tensor) else part for part in output)
