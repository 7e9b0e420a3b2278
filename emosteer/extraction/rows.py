"""Texts → one row each: the mean residual of a text, for what moments do not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from emosteer.models.batching import WINDOW, Text, batches, counted_from, longest, tokenised, windows
from emosteer.models.blocks import resolve_layers
from emosteer.models.capture import Capture
from emosteer.models.progress import Progress


def text_means(
    model: Any,
    tok: Any,
    texts: Iterable[str],
    *,
    layers: Any = "all",
    skip_tokens: int = 50,
    batch_tokens: int = 4096,
    progress: bool = False,
) -> dict[int, Tensor]:
    """Each text's mean residual over its tokens from `skip_tokens` on: layer → float32 `[N, D]`.

    The rows that probes are fitted to (`directions.logistic_probe`) and that readings of whole texts
    come from. Unlike moments they grow with the number of texts.

    Args:
        model, tok: any decoder of transformers and its tokenizer.
        texts: strings, in the order of the rows.
        layers: "all", numbers, or fractions of the depth.
        skip_tokens: tokens at the beginning that do not count (half of a short text at most).
        batch_tokens: rows times columns of a batch at most.
        progress: show a bar where the output is a terminal.

    Raises:
        ValueError: no text, or one without a token.
    """
    capture = Capture(model, (0,), kernel_norms=True)
    capture.layers = resolve_layers(layers, capture.decoder.depth)
    found: dict[int, list[Tensor]] = {layer: [] for layer in capture.layers}
    most, done = longest(tok, model), 0
    with Progress(progress) as bar:
        bar.begin("texts", None)
        for window in windows(texts, WINDOW):
            numbers = range(done, done + len(window))
            here = tokenised(tok, window, [0] * len(window), most, numbers)
            rows = mean_rows(capture, here, lambda n: counted_from(n, skip_tokens), batch_tokens)
            for layer, one in rows.items():
                found[layer].append(one.cpu())
            done += len(window)
            bar.advance(len(window))
    if not done:
        raise ValueError("texts is empty: give at least one")
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def mean_rows(
    capture: Capture, texts: Sequence[Text], first: Callable[[int], int], batch_tokens: int
) -> dict[int, Tensor]:
    """Each text's mean residual over its tokens from `first(length)` on: layer → float32 `[N, D]`."""
    device, dim = capture.device, capture.decoder.dim
    rows = {layer: torch.empty(len(texts), dim, device=device) for layer in capture.layers}
    numbered = [Text(text.ids, k) for k, text in enumerate(texts)]
    for batch in batches(numbered, batch_tokens, device=device):
        weight = torch.zeros(batch.ids.shape)
        for row, text in enumerate(batch.texts):
            start = first(len(text.ids))
            weight[row, start : len(text.ids)] = 1 / (len(text.ids) - start)
        weight = weight.to(device)
        at = torch.tensor([text.group for text in batch.texts], device=device)

        def see(layer: int, hidden: Tensor, weight: Tensor = weight, at: Tensor = at) -> None:
            rows[layer][at] = torch.einsum("bt,btd->bd", weight, hidden.float())

        capture.run(batch.ids.to(device), see)
    return rows
