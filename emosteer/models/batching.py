"""Texts → batches of token ids: lazily, by length, under a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .chat import one_beginning, token_ids

# Texts that are looked at together to sort them by length; memory does not depend on how many there are.
WINDOW = 256

# What a pass costs beside its tokens, in tokens. CPU: 20 ms of a pass of 0.5 ms a token (SmolLM2-135M, 2 cores).
# GPU: launches take as long as a few thousand tokens (an estimate; no GPU has measured it).
PASS_CPU, PASS_GPU = 48, 2048
# Past this many tokens a batch makes a CPU no faster (0.49 ms a token at 900, 0.51 at 4000), only fuller.
ENOUGH_CPU = 1024

# A tokenizer's encodings take a hundred times the room of the numbers that are kept of them.
TOKENISED_TOGETHER = 64


@dataclass(frozen=True)
class Text:
    """A text's token ids, the number of its group, and its own among all texts."""

    ids: tuple[int, ...]
    group: int
    number: int = 0


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


def batches(
    texts: Sequence[Text],
    batch_tokens: int,
    pad: int = 0,
    device: torch.device | None = None,
    *,
    padded: bool = True,
) -> list[Batch]:
    """Batches of rows times columns ≤ `batch_tokens` (one row at least), longest texts first.

    Texts sorted by length are cut where padding and passes together cost least:

        minimise Σ_batches (rows · longest + tokens that a pass costs on `device`)

    Longest first: whoever runs out of memory does so at once. On a CPU a batch stays under `ENOUGH_CPU`.
    With `padded=False` the texts of a batch have one length: for models that padding changes
    (`Capture.padded`).
    """
    order = sorted(texts, key=lambda text: len(text.ids), reverse=True)
    cpu = device is None or device.type == "cpu"
    most, a_pass = (min(batch_tokens, ENOUGH_CPU), PASS_CPU) if cpu else (batch_tokens, PASS_GPU)
    found: list[Batch] = []
    for start, stop in _cuts([len(t.ids) for t in order], most, a_pass, padded):
        rows = order[start:stop]
        ids = torch.full((len(rows), max(len(rows[0].ids), 1)), pad, dtype=torch.long)
        for row, text in enumerate(rows):
            ids[row, : len(text.ids)] = torch.tensor(text.ids, dtype=torch.long)
        found.append(Batch(tuple(rows), ids))
    return found


def _cuts(
    lengths: Sequence[int], batch_tokens: int, a_pass: int, padded: bool = True
) -> list[tuple[int, int]]:
    """Ranges of descending `lengths` of least cost, by dynamic programming from the end."""
    n = len(lengths)
    least = np.zeros(n + 1)  # least[i]: the cost of the texts from i on
    stop_of = np.zeros(n, dtype=np.int64)
    alike = np.zeros(n, dtype=np.int64)  # how many from i on have its length
    for start in range(n - 1, -1, -1):
        width = max(lengths[start], 1)
        most = min(max(batch_tokens // width, 1), n - start)
        if not padded:
            alike[start] = 1 + (
                alike[start + 1] if start + 1 < n and lengths[start + 1] == lengths[start] else 0
            )
            most = min(most, int(alike[start]))
        cost = np.arange(1, most + 1) * width + a_pass + least[start + 1 : start + most + 1]
        best = int(cost.argmin())
        least[start], stop_of[start] = cost[best], start + best + 1
    found, start = [], 0
    while start < n:
        found.append((start, int(stop_of[start])))
        start = int(stop_of[start])
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
    tok: Any, texts: Sequence[Any], groups: Sequence[int], most: int, numbers: Sequence[int]
) -> list[Text]:
    """Texts, or chats by the tokenizer's template, as tokens, cut after `most`.

    Raises:
        ValueError: a text without a token but special ones, by its entry in `numbers`.
    """
    found: list[Text] = []
    special = set(getattr(tok, "all_special_ids", ()))
    for start in range(0, len(texts), TOKENISED_TOGETHER):
        some = texts[start : start + TOKENISED_TOGETHER]
        plain = [text for text in some if isinstance(text, str)]
        encoded = iter(tok(plain, padding=False, truncation=False)["input_ids"] if plain else ())
        for i, text in enumerate(some, start):
            ids = one_beginning(tok, next(encoded)) if isinstance(text, str) else token_ids(tok, text)
            # Of an empty text a tokenizer leaves the begin-of-text token, whose residual is that of no text.
            if not len(ids) or (len(ids) <= 2 and set(ids) <= special):
                raise ValueError(f"text {numbers[i]} has no token: {text!r}")
            found.append(Text(tuple(ids[:most]), groups[i], numbers[i]))
    return found
