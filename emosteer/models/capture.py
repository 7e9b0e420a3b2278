"""Looking at the residual stream while a model runs, and stopping where nothing more is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from .blocks import Decoder, find_decoder
from .causality import find_padding
from .injection import steered_at_outputs
from .kernel_norms import run_norms_on_kernel
from .patching import Patches, evaluating, first_tensor, unwrap


class _Enough(Exception):
    pass


class Capture:
    """Runs a model up to the last wanted block and shows the stream after each wanted one.

    Args:
        model: any decoder of transformers; it runs in eval mode, eagerly, without gradients.
        layers: blocks, ascending; layer `l` is the stream after block `l`.
        kernel_norms: let the kernel compute the model's RMS norms, which changes the stream by rounding
            and takes some percent off a pass.

    Attributes:
        decoder: where the blocks are.
        device: of the token ids to pass.
        padded: whether texts of different lengths may share a batch (see `run`).
    """

    def __init__(self, model: Any, layers: Sequence[int], *, kernel_norms: bool = False) -> None:
        self.model = unwrap(model)
        self.decoder: Decoder = find_decoder(model)
        self.layers = tuple(layers)
        self._kernel_norms = kernel_norms
        parameters = self.model.parameters()
        self.device = next((p.device for p in parameters if p.device.type != "meta"), None)

    @cached_property
    def padded(self) -> bool:
        """Whether a text's rows in a padded batch are those of the text alone, proved on a probe."""
        return find_padding(self.model, self.decoder)

    def run(self, ids: Tensor, see: Callable[[int, Tensor], None]) -> None:
        """Call `see(layer, hidden)` for each wanted layer of one forward pass of `ids` `[B, T]`.

        The passes after the last wanted block, final norm and head included, do not happen. Texts
        of different lengths are padded on the right, with any token, where `padded` says so: in a
        causal model nothing after a token changes it, so no mask is needed. In any other the texts
        of a batch must have one length. `hidden` `[B, T, D]` is the model's own
        tensor: read it at once, do not write to it, do not keep it. Where the model is steered, it
        is the steered stream.
        """
        last = self.layers[-1]

        def watch(layer: int) -> Callable[[Callable], Callable]:
            def make(forward: Callable) -> Callable:
                def watched(*args: Any, **kwargs: Any) -> Any:
                    output = forward(*args, **kwargs)
                    hidden = first_tensor(output)
                    assert hidden is not None  # find_decoder has seen it
                    see(layer, hidden)
                    if layer == last:
                        raise _Enough
                    return output

                return watched

            return make

        patches = Patches()
        try:
            if self._kernel_norms:
                run_norms_on_kernel(self.model, patches)
            for layer in self.layers:
                patches.replace(self.decoder.blocks[layer], "forward", watch(layer))
            with (
                evaluating(self.model),
                torch.no_grad(),
                torch.compiler.set_stance("force_eager"),
                steered_at_outputs(self.decoder),
            ):
                self.model(input_ids=ids, use_cache=False)
        except _Enough:
            pass
        finally:
            patches.undo()


def name_of(model: Any) -> tuple[str, str | None]:
    """What a model is called and its revision, as far as it says so."""
    config = getattr(unwrap(model), "config", None)
    name = getattr(config, "_name_or_path", None) or type(unwrap(model)).__name__
    return str(name), getattr(config, "_commit_hash", None)


def layer_at_two_thirds(layers: Sequence[int], depth: int) -> int:
    """The layer nearest to two thirds of the depth: where abstract concepts read best."""
    return min(layers, key=lambda layer: abs(layer - 2 * depth / 3))
