"""Texts → bank: one streaming pass over all wanted layers, and directions from its moments."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from emosteer.bank import Bank
from emosteer.models.progress import Progress

from .collected import METHODS, NEUTRAL, Collected
from .counting import Counting
from .pairs import extract_pairs
from .rows import text_means

__all__ = ["Collected", "collect", "extract", "extract_pairs", "text_means"]

TokenWeight = Callable[[Sequence[int]], Sequence[float]]


def extract(
    model: Any,
    tok: Any,
    stories: Iterable[Any],
    *,
    neutral: Iterable[str] | None = None,
    layers: Any = "all",
    skip_tokens: int = 50,
    denoise: float = 0.5,
    method: str = "mean_difference",
    batch_tokens: int = 4096,
    progress: bool = True,
    token_weight: TokenWeight | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    not_finite: str = "raise",
) -> Bank:
    """Directions of labelled texts at each layer, by the recipe of the emotion-vectors paper.

    Each text's mean residual over its tokens from `skip_tokens` on (from the middle of a short text);
    the mean of a label's texts; less the mean over labels; less the projection on the principal
    components of neutral texts that together explain `denoise` of their variance (Sofroniew et al.,
    2026). One pass computes all layers and stops after the last wanted block; no head, padding never
    counts, and memory does not grow with the number of texts: they are read in windows of a few
    hundred, sorted by length within one.

    In a process group of torch.distributed each process takes its share of the texts, given the same
    texts in the same order, and all return the same bank.

    Args:
        model, tok: any decoder of transformers and its tokenizer.
        stories: `(label, text)` pairs, or `Story`s; read once, lazily. A text may be a chat, a list of
            messages, which goes through the tokenizer's chat template.
        neutral: texts without what the labels are about. None: the ones that `stories` brings along
            (`es.emotions.corpus()` does), else none; `()`: none.
        layers: "all", numbers, or fractions of the depth.
        skip_tokens: tokens at the beginning that do not count.
        denoise: fraction of the neutral variance to take out, in [0, 1).
        method: "mean_difference", or "lda": mean differences whitened by the shrunk covariance within
            labels.
        batch_tokens: rows times columns of a batch at most.
        progress: show a bar where the output is a terminal.
        token_weight: token ids of a text → weight of each, not negative; those that are skipped do not
            count whatever their weight.
        checkpoint: a file that keeps what was counted, batch by batch: an interrupted extraction given
            the same file and texts goes on where it was. Removed at the end.
        not_finite: "raise" where the residuals of a text are not finite, by its number, label and layer;
            "skip": a pass of its own finds such texts beforehand and leaves them out (their numbers
            are in the provenance).

    Returns:
        a bank with means, scales (mean residual norms) and the mean and spread of each projection over
        the texts' tokens, which z-scores need.

    Raises:
        TypeError, ValueError: bad arguments, a text that is no string or has no token, residuals that
            are not finite, fewer than two labels.
    """
    if not 0 <= denoise < 1:
        raise ValueError(f"denoise must lie in [0, 1), got {denoise!r}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    collected, counting = _count(
        model,
        tok,
        stories,
        neutral,
        progress,
        layers=layers,
        skip_tokens=skip_tokens,
        within=method == "lda",
        batch_tokens=batch_tokens,
        token_weight=token_weight,
        checkpoint=checkpoint,
        not_finite=not_finite,
    )
    bank = collected.bank(method, denoise)
    counting.checkpoint.clear()
    return bank


def collect(
    model: Any,
    tok: Any,
    stories: Iterable[Any],
    *,
    neutral: Iterable[str] | None = None,
    layers: Any = "all",
    skip_tokens: int = 50,
    within: bool = True,
    batch_tokens: int = 4096,
    progress: bool = True,
    token_weight: TokenWeight | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    not_finite: str = "raise",
) -> Collected:
    """The moments that `extract` takes its directions from, for trying several methods on one pass.

        collected = es.collect(model, tok, es.emotions.corpus())
        banks = [collected.bank("mean_difference", denoise=0.0), collected.bank("lda")]
        eraser = collected.eraser(20)

    Args:
        within: keep each layer's covariance of the stories' tokens, which "lda" and erasers need
            (`D²` numbers a layer, and the time of a product `[tokens, D]ᵀ [tokens, D]`).

    The other arguments and errors are `extract`'s.
    """
    collected, counting = _count(
        model,
        tok,
        stories,
        neutral,
        progress,
        layers=layers,
        skip_tokens=skip_tokens,
        within=within,
        batch_tokens=batch_tokens,
        token_weight=token_weight,
        checkpoint=checkpoint,
        not_finite=not_finite,
    )
    counting.checkpoint.clear()
    return collected


def _count(
    model: Any, tok: Any, stories: Iterable[Any], neutral: Iterable[str] | None, progress: bool, **how: Any
) -> tuple[Collected, Counting]:
    if neutral is None:
        neutral = getattr(stories, NEUTRAL, ())
    counting = Counting(model, tok, **how)
    with Progress(progress) as bar:
        counting.count(stories, bar, "stories")
        counting.count(((NEUTRAL, text) for text in neutral), bar, NEUTRAL)
    return counting.finish(), counting
