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
        ValueError: no text, one without a token, or one whose residuals are not finite, by its number.
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
            check_finite(rows, "text", numbers)
            for layer, one in rows.items():
                found[layer].append(one.cpu())
            done += len(window)
            bar.advance(len(window))
    if not done:
        raise ValueError("texts is empty: give at least one")
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def check_finite(rows: dict[int, Tensor], what: str, numbers: Sequence[int], hint: str = "") -> None:
    """Raise where a row is not finite, with what it is of, its number and the first layer."""
    for layer, one in rows.items():
        bad = (~torch.isfinite(one).all(1)).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{what} {numbers[bad[0]]} has a residual at layer {layer} that is not finite{hint}"
            )


def mean_rows(
    capture: Capture, texts: Sequence[Text], first: Callable[[int], int], batch_tokens: int
) -> dict[int, Tensor]:
    """Each text's mean residual over its tokens from `first(length)` on: layer → float32 `[N, D]`."""
    device, dim = capture.device, capture.decoder.dim
    rows = {layer: torch.zeros(len(texts), dim, device=device) for layer in capture.layers}
    numbered = [Text(text.ids, k) for k, text in enumerate(texts)]
    for batch in batches(numbered, batch_tokens, device=device, padded=capture.padded):
        read = torch.zeros(batch.ids.shape, dtype=torch.bool)
        for row, text in enumerate(batch.texts):
            read[row, first(len(text.ids)) : len(text.ids)] = True
        weight = (read / read.sum(1, keepdim=True))[read][:, None].to(device)
        # Rows that are not read are not touched: 0 times infinity is not 0.
        at = read.flatten().nonzero().flatten().to(device)
        owner = torch.tensor([text.group for text in batch.texts], device=device)[at // batch.ids.shape[1]]

        def see(
            layer: int, hidden: Tensor, weight: Tensor = weight, at: Tensor = at, owner: Tensor = owner
        ) -> None:
            picked = hidden.reshape(-1, dim).index_select(0, at).float()
            rows[layer].index_add_(0, owner, picked * weight)

        capture.run(batch.ids.to(device), see)
    return rows
