"""Log-probabilities of given continuations, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .patching import evaluating


def continuation_log_probabilities(
    model: Any, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, pad: int = 0
) -> list[Tensor]:
    """Log-probability of each token of each continuation, given its prompt and the tokens before it.

    One forward pass, padded on the left so that what a steering counts as a row's positions is right;
    the head is applied where a continuation is predicted and nowhere else, if the model can.

    Args:
        model: a causal language model, steered or not.
        prompts, continuations: token ids; every prompt has a token at least.
        pad: any token id.

    Returns:
        one float32 tensor a row, as long as its continuation.

    Raises:
        ValueError: an empty prompt, or lists of different lengths.
    """
    if len(prompts) != len(continuations):
        raise ValueError(f"got {len(prompts)} prompts and {len(continuations)} continuations")
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {row} has no token; give at least the token that starts a text")
    rows = [[*p, *c] for p, c in zip(prompts, continuations)]
    ids, mask = padded(rows, pad, device_of(model))
    keep = max(len(c) for c in continuations) + 1
    with evaluating(model), torch.no_grad():
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=keep,
        ).logits[:, -keep:]
    found = []
    for row, continuation in enumerate(continuations):
        n = len(continuation)
        predicted = logits[row, keep - 1 - n : keep - 1].float().log_softmax(-1)
        chosen = torch.tensor(list(continuation), dtype=torch.long, device=predicted.device)
        found.append(predicted.gather(1, chosen[:, None])[:, 0])
    return found


def padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """`(input_ids, attention_mask)`, int64 `[B, T]`, of token lists padded on the left."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for k, row in enumerate(rows):
        if len(row):
            ids[k, width - len(row) :] = torch.tensor(list(row), dtype=torch.long)
            mask[k, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def device_of(model: Any) -> torch.device:
    """Where a model wants its token ids."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


def repetition(tokens: Sequence[int], n: int = 3) -> float:
    """The share of a text's n-grams that occurred before in it: 0 none, near 1 a loop."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0
