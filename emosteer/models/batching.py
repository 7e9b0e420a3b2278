"""Texts → batches of token ids: lazily, by length, under a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

# Texts that are looked at together to sort them by length; memory does not depend on how many there are.
WINDOW = 512

# A tokenizer's encodings take a hundred times the room of the numbers that are kept of them.
TOKENISED_TOGETHER = 64


@dataclass(frozen=True)
class Text:
    """A text's token ids and the number of its group."""

    ids: tuple[int, ...]
    group: int


@dataclass(frozen=True)
class Batch:
    """Texts of similar length.

    Attributes:
        texts: in the order of the rows.
        ids: int64 `[B, T]`, padded on the right.
    """

    texts: tuple[Text, ...]
    ids: Tensor


def windows(items: Iterable[Any], size: int = WINDOW) -> Iterator[list[Any]]:
    """Lists of at most `size` items, taken one after another."""
    iterator = iter(items)
    while window := list(islice(iterator, size)):
        yield window


def batches(texts: Sequence[Text], batch_tokens: int, pad: int = 0) -> list[Batch]:
    """Batches of rows times columns ≤ `batch_tokens` (one row at least), longest texts first.

    Longest first: whoever runs out of memory does so at once.
    """
    order = sorted(texts, key=lambda text: len(text.ids), reverse=True)
    found: list[Batch] = []
    start = 0
    while start < len(order):
        width = max(len(order[start].ids), 1)
        stop = min(start + max(batch_tokens // width, 1), len(order))
        rows = order[start:stop]
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        for row, text in enumerate(rows):
            ids[row, : len(text.ids)] = torch.tensor(text.ids, dtype=torch.long)
        found.append(Batch(tuple(rows), ids))
        start = stop
    return found


def counted_from(length: int, skip_tokens: int) -> int:
    """The first token that counts: the first half of a short text is skipped at most."""
    return min(skip_tokens, length // 2)


def longest(tok: Any, model: Any) -> int:
    """How many tokens a model takes at most."""
    config: Any = getattr(model, "config", None)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = (getattr(tok, "model_max_length", None), getattr(text, "max_position_embeddings", None))
    return min((n for n in known if isinstance(n, int) and n > 0), default=1 << 30)


def tokenised(
    tok: Any, texts: Sequence[str], groups: Sequence[int], most: int, numbers: Sequence[int]
) -> list[Text]:
    """Texts as tokens, cut after `most`.

    Raises:
        ValueError: a text without a token, by its entry in `numbers`.
    """
    found: list[Text] = []
    for start in range(0, len(texts), TOKENISED_TOGETHER):
        some = list(texts[start : start + TOKENISED_TOGETHER])
        for i, ids in enumerate(tok(some, padding=False, truncation=False)["input_ids"], start):
            if not len(ids):
                raise ValueError(f"text {numbers[i]} has no token: {texts[i]!r}")
            found.append(Text(tuple(ids[:most]), groups[i]))
    return found
