"""What all programs of a prompt share, computed once: keys and values, and the stream where steering begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...plan.units import Prompt
from .cache import KV, PastLayer, Stripe, past_cache
from .held_rows import NO_ROW
from .memory import Budget
from .passes import Passes
from .steered import Steered


@dataclass
class Prefix:
    """An unsteered prompt of P tokens.

    Attributes:
        prompt: which.
        kv: keys and values `[H, P, d]` of each block that was run, None for the others.
        hidden: `[P, D]`, the stream after the last shared block.
        last: `[V]`, logits after the last token; None where the pass ended at the shared block.
    """

    prompt: Prompt
    kv: list[KV | None]
    hidden: Tensor
    last: Tensor | None

    @property
    def whole(self) -> bool:
        """Whether all blocks were run."""
        return self.last is not None

    @cached_property
    def stripes(self) -> list[Stripe]:
        """Keys and values in each block, of a prefix that is whole."""
        return [Stripe((kv,)) for kv in self.kv if kv is not None]


def prefixes(
    passes: Passes, steered: Steered, prompts: Sequence[Prompt], budget: Budget, *, whole: bool
) -> list[Prefix]:
    """The prefixes of prompts, in batches by length.

    Args:
        whole: run all blocks, for programs that leave the prompt's beginning alone, and for the
            unsteered model; else only those up to the first steered one.
    """
    order = sorted(range(len(prompts)), key=lambda k: len(prompts[k].tokens), reverse=True)
    found: dict[int, Prefix] = {}
    while order:
        rows = budget.rows_of_width(len(prompts[order[0]].tokens))
        some, order = order[:rows], order[rows:]
        for k, prefix in zip(some, _batch(passes, steered, [prompts[k] for k in some], whole)):
            found[k] = prefix
    return [found[k] for k in range(len(prompts))]


def _batch(passes: Passes, steered: Steered, prompts: Sequence[Prompt], whole: bool) -> list[Prefix]:
    depth, shared = passes.decoder.depth, steered.shared
    ids, mask = right_padded([prompt.tokens for prompt in prompts], passes.device)
    lengths = [len(prompt.tokens) for prompt in prompts]
    cache = past_cache([None] * depth, 0, keep=True)
    seen: list[Tensor] = []
    n = ids.shape[1]
    with steered.batch([NO_ROW] * len(prompts), lengths):
        logits = passes(
            ids,
            mask=mask,
            position_ids=torch.arange(n, device=passes.device).expand(len(prompts), n),
            cache=cache,
            last=None if whole else shared,
            watch={shared: lambda hidden: seen.append(hidden.clone())},
            wanted=[row * n + length - 1 for row, length in enumerate(lengths)] if whole else None,
        )
    run = depth if whole else shared + 1
    found = []
    for row, (prompt, length) in enumerate(zip(prompts, lengths)):
        kv: list[KV | None] = [None] * depth
        for block in range(run):
            keys, values = added(cache.layers[block])
            kv[block] = keys[row, :, :length], values[row, :, :length]
        last = None if logits is None else logits[row]
        found.append(Prefix(prompt, kv, seen[0][row, :length], last))
    return found


def added(layer: object) -> KV:
    assert isinstance(layer, PastLayer)
    return layer.new


def right_padded(rows: Sequence[Sequence[int]], device: torch.device, pad: int = 0) -> tuple[Tensor, Tensor]:
    """`(ids, mask)`, int64 `[B, n]`: in a causal model nothing after a token changes it."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(list(row), dtype=torch.long)
        mask[k, : len(row)] = 1
    return ids.to(device), mask.to(device)
