"""Outputs of a model's modules at one token of each text: by length, early exit, no head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from emosteer.models.batching import Batch, Text, batches
from emosteer.models.patching import first_tensor

# A batch may have this many tokens, whatever number of texts the caller thinks fit.
MIN_BATCH_TOKENS = 1024


class _Enough(Exception):
    pass


def last_tokens(
    model: nn.Module,
    modules: Mapping[int, nn.Module],
    texts: Mapping[str, Sequence[Sequence[int]]],
    at: Sequence[int],
    batch_size: int,
    bar: Callable[[list[Batch]], Iterable[Batch]] = iter,
) -> dict[int, Tensor]:
    """What each module returned at one token of each text.

    Texts are sorted by length and padded on the right. A pass stops when the last wanted module has
    returned. Nothing else about the model is touched: not its mode, not its hooks.

    Args:
        model: run on what the tokenizer gave and, where a batch has padding, a mask of that.
        modules: key → module; the first tensor of its output counts.
        texts: what a tokenizer gave, unpadded: `input_ids`, and perhaps more of the same lengths.
        at: which token of each text.
        batch_size: at most this many of the longest texts' tokens in a batch, or `MIN_BATCH_TOKENS`.
        bar: wraps the batches, for a progress bar.

    Returns:
        key → `[N, D]` of N texts, in the dtype of the outputs.
    """
    numbered = [Text(tuple(ids), number) for number, ids in enumerate(texts["input_ids"])]
    longest = max(len(text.ids) for text in numbered)
    more = {name: lists for name, lists in texts.items() if name not in ("input_ids", "attention_mask")}
    device = next(parameter.device for parameter in model.parameters())
    found: dict[int, Tensor] = {}
    here: dict[str, Tensor] = {}
    waiting: set[int] = set()

    def watch(key: int) -> Callable:
        def hook(module: nn.Module, _args: Any, output: Any) -> None:
            hidden = first_tensor(tuple(output.values()) if isinstance(output, dict) else output)
            if hidden is None:
                raise ValueError(f"{type(module).__name__} returned no tensor, but {type(output).__name__}")
            if key not in found:
                found[key] = hidden.new_empty(len(numbered), hidden.shape[-1])
            found[key][here["texts"].to(hidden.device)] = hidden[
                here["rows"].to(hidden.device), here["at"].to(hidden.device)
            ]
            waiting.discard(key)
            if not waiting:
                raise _Enough

        return hook

    hooks = [module.register_forward_hook(watch(key)) for key, module in modules.items()]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            budget = max(batch_size * longest, MIN_BATCH_TOKENS)
            for batch in bar(batches(numbered, budget, device=device)):
                numbers = [text.group for text in batch.texts]
                here["texts"] = torch.tensor(numbers)
                here["at"] = torch.tensor([at[number] for number in numbers])
                here["rows"] = torch.arange(len(numbers))
                waiting.update(modules)
                _run(model, batch, more, device)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _run(model: nn.Module, batch: Batch, more: Mapping[str, Sequence], device: torch.device) -> None:
    lengths = torch.tensor([len(text.ids) for text in batch.texts])
    mask = torch.arange(batch.ids.shape[1]) < lengths[:, None]
    call = {"input_ids": batch.ids}
    if not bool(mask.all()):
        call["attention_mask"] = mask.long()
    for name, lists in more.items():
        call[name] = torch.zeros_like(batch.ids)
        for row, text in enumerate(batch.texts):
            call[name][row, : len(text.ids)] = torch.tensor(lists[text.group])
    with suppress(_Enough):
        model(**{name: tensor.to(device) for name, tensor in call.items()}, use_cache=False)
