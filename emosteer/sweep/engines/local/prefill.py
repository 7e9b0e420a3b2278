"""A prompt's tokens under each unit's program, from where something acts on them; and what comes after them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..work import Work
from .cache import KV, Stripe, past_cache, side_by_side
from .passes import Passes
from .prefix import Prefix, added, right_padded
from .steered import Steered


@dataclass
class Ready:
    """A unit whose prompt has been run under its program.

    Attributes:
        first: the first token of the prompt that was run for this unit alone.
        logits: `[V]` after the prompt.
        own: keys and values `[H, P − first, d]` of the blocks after the shared one; None where not kept.
    """

    work: Work
    prefix: Prefix
    first: int
    logits: Tensor
    shared: int
    own: list[KV | None] | None = None

    @cached_property
    def stripes(self) -> list[Stripe]:
        """Keys and values of the whole prompt in each block."""
        found = []
        for block, whole in enumerate(self.prefix.kv):
            own = self.own[block] if self.own is not None and block > self.shared else None
            pieces: list[KV] = []
            if own is None:
                assert whole is not None
                pieces.append(whole)
            else:
                if self.first:
                    assert whole is not None
                    pieces.append((whole[0][:, : self.first], whole[1][:, : self.first]))
                pieces.append(own)
            found.append(Stripe(tuple(pieces)))
        return found

    @property
    def length(self) -> int:
        return len(self.work.unit.prompt.tokens)


def prefill(
    passes: Passes, steered: Steered, works: Sequence[Work], shared: Mapping[str, Prefix], *, keep: bool
) -> list[Ready]:
    """Run each unit's prompt from its first steered token and after the shared block.

    Args:
        shared: prompt id → prefix.
        keep: whether keys and values are wanted afterwards.
    """
    found: dict[int, Ready] = {}
    run: list[int] = []
    for k, work in enumerate(works):
        prefix = shared[work.unit.prompt.id]
        if steered.first_token(work.unit) < len(work.unit.prompt.tokens):
            run.append(k)
        else:
            assert prefix.last is not None
            found[k] = Ready(work, prefix, len(work.unit.prompt.tokens), prefix.last, steered.shared)
    if run:
        for k, ready in zip(run, _run(passes, steered, [works[k] for k in run], shared, keep)):
            found[k] = ready
    return [found[k] for k in range(len(works))]


def _run(
    passes: Passes, steered: Steered, works: Sequence[Work], shared: Mapping[str, Prefix], keep: bool
) -> list[Ready]:
    depth, block = passes.decoder.depth, steered.shared
    units = [work.unit for work in works]
    having = [shared[unit.prompt.id] for unit in units]
    firsts = [steered.first_token(unit) for unit in units]
    ids, new = right_padded([unit.prompt.tokens[first:] for unit, first in zip(units, firsts)], passes.device)
    _batch, n = ids.shape
    columns = max(firsts)
    past: list[KV | None] = [None] * depth
    if columns:
        for layer in range(block + 1, depth):
            past[layer] = _past(having, firsts, columns, layer)
    cache = past_cache(past, columns, keep=keep) if keep or columns else None
    mask, position_ids = _placed(firsts, columns, new)
    lengths = [len(unit.prompt.tokens) for unit in units]
    wanted = [row * n + length - first - 1 for row, (length, first) in enumerate(zip(lengths, firsts))]
    with steered.holding(units) as rows, steered.batch(rows, lengths):
        logits = passes(
            ids,
            mask=mask,
            position_ids=position_ids,
            cache=cache,
            start=_streams(having, firsts, n),
            first=block + 1,
            wanted=wanted,
        )
    assert logits is not None
    ready = []
    for row, (work, prefix, first, length) in enumerate(zip(works, having, firsts, lengths)):
        own: list[KV | None] | None = None
        if keep and cache is not None:
            own = [None] * depth
            for layer in range(block + 1, depth):
                keys, values = added(cache.layers[layer])
                own[layer] = keys[row, :, : length - first], values[row, :, : length - first]
        ready.append(Ready(work, prefix, first, logits[row], block, own))
    return ready


def _placed(pasts: Sequence[int], columns: int, new: Tensor) -> tuple[Tensor, Tensor]:
    """Mask `[B, p + n]` and position ids `[B, n]` of tokens behind so many cached ones, which end at column p."""
    past = torch.tensor(list(pasts), device=new.device)[:, None]
    before = torch.arange(columns, device=new.device)[None] >= columns - past
    return torch.cat([before.long(), new], 1), past + torch.arange(new.shape[1], device=new.device)


def _past(having: Sequence[Prefix], firsts: Sequence[int], columns: int, layer: int) -> KV:
    """Keys and values before each sequence's first token; one sequence for all where they are the same."""
    if all(prefix is having[0] for prefix in having):
        whole = having[0].kv[layer]
        assert whole is not None
        return whole[0][None, :, :columns], whole[1][None, :, :columns]
    stripes = []
    for prefix, first in zip(having, firsts):
        whole = prefix.kv[layer]
        assert whole is not None
        stripes.append(Stripe(((whole[0][:, :first], whole[1][:, :first]),)))
    return side_by_side(stripes, columns)


def _streams(having: Sequence[Prefix], firsts: Sequence[int], n: int) -> Tensor:
    """`[B, n, D]`, a copy that steering may write to."""
    if all(prefix is having[0] for prefix in having) and len(set(firsts)) == 1:
        return having[0].hidden[None, firsts[0] :].repeat(len(having), 1, 1)
    like = having[0].hidden
    out = like.new_zeros(len(having), n, like.shape[-1])
    for row, prefix, first in zip(out, having, firsts):
        tail = prefix.hidden[first:]
        row[: len(tail)] = tail
    return out


@dataclass(frozen=True)
class Tail:
    """Tokens behind a sequence's cached ones.

    Attributes:
        stripes: the cached ones in each block.
        program: table row, −1 for the unsteered model.
        prompt: tokens of the prompt.
    """

    stripes: Sequence[Stripe]
    tokens: Sequence[int]
    program: int
    prompt: int


def extend(
    passes: Passes,
    steered: Steered,
    tails: Sequence[Tail],
    watch: Mapping[int, Callable[[Tensor], None]] | None = None,
) -> list[Tensor]:
    """Logits `[n, V]` after each of the tokens of each tail, in one pass."""
    ids, new = right_padded([tail.tokens for tail in tails], passes.device)
    n = ids.shape[1]
    pasts = [tail.stripes[0].length for tail in tails]
    columns = max(pasts)
    past = [
        side_by_side([tail.stripes[block] for tail in tails], columns)
        for block in range(passes.decoder.depth)
    ]
    mask, position_ids = _placed(pasts, columns, new)
    wanted = [row * n + k for row, tail in enumerate(tails) for k in range(len(tail.tokens))]
    with steered.batch([tail.program for tail in tails], [tail.prompt for tail in tails]):
        logits = passes(
            ids,
            mask=mask,
            position_ids=position_ids,
            cache=past_cache(list(past), columns, keep=False),
            watch=watch,
            wanted=wanted,
        )
    assert logits is not None
    return list(logits.split([len(tail.tokens) for tail in tails]))
