"""Texts → batches of token ids: lazily, by length, under a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

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


def batches(
    texts: Sequence[Text], batch_tokens: int, pad: int = 0, device: torch.device | None = None
) -> list[Batch]:
    """Batches of rows times columns ≤ `batch_tokens` (one row at least), longest texts first.

    Texts sorted by length are cut where padding and passes together cost least:

        minimise Σ_batches (rows · longest + tokens that a pass costs on `device`)

    Longest first: whoever runs out of memory does so at once. On a CPU a batch stays under `ENOUGH_CPU`.
    """
    order = sorted(texts, key=lambda text: len(text.ids), reverse=True)
    cpu = device is None or device.type == "cpu"
    most, a_pass = (min(batch_tokens, ENOUGH_CPU), PASS_CPU) if cpu else (batch_tokens, PASS_GPU)
    found: list[Batch] = []
    for start, stop in _cuts([len(t.ids) for t in order], most, a_pass):
        rows = order[start:stop]
        ids = torch.full((len(rows), max(len(rows[0].ids), 1)), pad, dtype=torch.long)
        for row, text in enumerate(rows):
            ids[row, : len(text.ids)] = torch.tensor(text.ids, dtype=torch.long)
        found.append(Batch(tuple(rows), ids))
    return found


def _cuts(lengths: Sequence[int], batch_tokens: int, a_pass: int) -> list[tuple[int, int]]:
    """Ranges of descending `lengths` of least cost, by dynamic programming from the end."""
    n = len(lengths)
    least = np.zeros(n + 1)  # least[i]: the cost of the texts from i on
    stop_of = np.zeros(n, dtype=np.int64)
    for start in range(n - 1, -1, -1):
        width = max(lengths[start], 1)
        most = min(max(batch_tokens // width, 1), n - start)
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
