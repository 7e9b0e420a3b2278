"""Pairs of texts → one direction: what the first of each has and the second has not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from emosteer import directions
from emosteer.bank import Bank
from emosteer.models.batching import longest, tokenised, windows
from emosteer.models.blocks import resolve_layers
from emosteer.models.capture import Capture, name_of
from emosteer.models.progress import Progress
from emosteer.ops import Moments

from .counting import NOT_FINITE, SKIP_HINT
from .rows import check_finite, mean_rows

METHODS = ("pca_diff", "pca_center", "mean_difference")
READ = ("last", "mean")
# Pairs that are sorted by length together.
WINDOW = 256


def extract_pairs(
    model: Any,
    tok: Any,
    pairs: Iterable[tuple[str, str]],
    name: str,
    *,
    method: str = "pca_diff",
    read: str = "last",
    layers: Any = "all",
    batch_tokens: int = 4096,
    progress: bool = True,
    not_finite: str = "raise",
) -> Bank:
    """One direction a layer from contrasting pairs of texts, in one streaming pass.

    With d = x⁺ − x⁻ the difference of a pair's residuals: "pca_diff" and "pca_center" are repeng's
    (`directions.pca_of_differences`; Zou et al., 2023), "mean_difference" is E[d], as in
    steering-vectors (Rimsky et al., 2024). Only the moments of d are kept.

    Args:
        model, tok: any decoder of transformers and its tokenizer.
        pairs: `(positive, negative)` texts, read once, lazily.
        name: of the direction.
        method: see above.
        read: "last": the last token's residual, "mean": the mean over a text's tokens.
        layers: "all", numbers, or fractions of the depth.
        batch_tokens: rows times columns of a batch at most.
        progress: show a bar where the output is a terminal.
        not_finite: "raise" where a residual that is read is not finite, or "skip" its pair.

    Returns:
        a bank of one concept; its scale is the mean norm of the residuals read.

    Raises:
        TypeError, ValueError: an unknown method, fewer than two pairs, a pair that is none, a text
            without a token, or one whose residual is not finite, by its pair and layer.
    """
    if not_finite not in NOT_FINITE:
        raise ValueError(f"not_finite must be one of {', '.join(NOT_FINITE)}, got {not_finite!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if read not in READ:
        raise ValueError(f"read must be one of {', '.join(READ)}, got {read!r}")
    capture = Capture(model, (0,), kernel_norms=True)
    capture.layers = resolve_layers(layers, capture.decoder.depth)
    dim, device = capture.decoder.dim, capture.device or torch.device("cpu")
    moments = {layer: Moments(1, dim, method != "mean_difference", device) for layer in capture.layers}
    middle = {layer: Moments(1, dim, False, device) for layer in capture.layers}
    norm = dict.fromkeys(capture.layers, 0.0)
    count = seen = 0
    with Progress(progress) as bar:
        bar.begin("pairs", None)
        for window in windows(pairs, WINDOW):
            flat = [text for k, pair in enumerate(window) for text in _both(pair, seen + k)]
            numbers = [seen + k // 2 for k in range(len(flat))]
            tokens = tokenised(tok, flat, [0] * len(flat), longest(tok, model), numbers)
            ends = mean_rows(capture, tokens, lambda n: n - 1 if read == "last" else 0, batch_tokens)
            if not_finite == "raise":
                check_finite(ends, "pair", numbers, SKIP_HINT)
            fine = torch.stack([torch.isfinite(rows).all(1) for rows in ends.values()]).all(0)
            fine = fine.view(-1, 2).all(1).repeat_interleave(2)
            seen += len(window)
            count += int(fine.sum()) // 2
            for layer, rows in ((layer, rows[fine]) for layer, rows in ends.items()):
                moments[layer].update(rows[0::2] - rows[1::2])
                middle[layer].update(rows)
                norm[layer] += float(rows.norm(dim=1).double().sum())
            bar.advance(len(window))
    if count < 2:
        raise ValueError(f"pairs must hold at least two pairs, got {count} that count of {seen}")
    found, mean = {}, {}
    for layer, one in moments.items():
        difference = one.total_mean().cpu()
        if method == "mean_difference":
            vector = difference
        else:
            covariance = one.covariance().cpu()
            vector = directions.pca_of_differences(difference, covariance, count, center=method == "pca_diff")
        found[layer], mean[layer] = vector[None], middle[layer].total_mean().cpu()
    model_name, revision = name_of(model)
    return Bank(
        [name],
        found,
        mean=mean,
        scale={layer: total / (2 * count) for layer, total in norm.items()},
        provenance={
            "model": model_name,
            "revision": revision,
            "method": method,
            "read": read,
            "texts": {"pairs": count, **({"left out": seen - count} if seen > count else {})},
        },
    )


def _both(pair: Any, number: int) -> tuple[str, str]:
    try:
        positive, negative = pair
    except (TypeError, ValueError):
        raise TypeError(f"pair {number} must be (positive, negative), got {type(pair).__name__}") from None
    if not isinstance(positive, str) or not isinstance(negative, str):
        raise TypeError(
            f"pair {number} must be two strings, got {type(positive).__name__}, {type(negative).__name__}"
        )
    return positive, negative
