"""Continuous batching: sequences that generate together, each with its own program, prompt and random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...plan.generation import Generation
from ..work import Work
from .cache import RowCache
from .passes import Passes
from .prefill import Ready
from .steered import Steered


@dataclass
class Growing:
    """A sequence while its text grows."""

    ready: Ready
    program: int
    uniforms: Tensor | None
    tokens: list[int] = field(default_factory=list)

    @property
    def work(self) -> Work:
        return self.ready.work


class Pool:
    """Sequences that generate together; one that ends makes room for the next.

    Args:
        capacity: sequences at most.
        width: columns of the longest prompt and its text.
    """

    def __init__(
        self, passes: Passes, steered: Steered, generation: Generation, capacity: int, width: int
    ) -> None:
        self.passes, self.steered, self.generation = passes, steered, generation
        self.capacity, self.width = capacity, width
        self.cache = RowCache(capacity, width, passes.decoder.depth)
        self.rows: list[Growing] = []
        self._ends = ends_of(passes.model)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def free(self) -> int:
        return self.capacity - len(self.rows)

    def admit(self, some: list[Ready]) -> Iterator[Growing]:
        """Take units in; those whose first token already ends them come back."""
        if not some:
            return
        units = [ready.work.unit for ready in some]
        uniforms = [self.generation.uniforms(unit.seed, unit.prompt.tokens) for unit in units]
        first = self._choose(torch.stack([ready.logits for ready in some]), uniforms, [0] * len(some))
        for ready, drawn, token in zip(some, uniforms, first):
            row = Growing(ready, -1, drawn)
            if self._ended(row, token):
                yield row
                continue
            self.cache.admit(ready.stripes)
            row.program = self.steered.hold(ready.work.unit)
            ready.own = None  # the cache has a copy
            ready.__dict__.pop("stripes", None)
            self.rows.append(row)

    def step(self) -> Iterator[Growing]:
        """One more token for every sequence; those that end come back."""
        device, rows, cache = self.passes.device, self.rows, self.cache
        ids = torch.tensor([[row.tokens[-1]] for row in rows])
        position = torch.tensor([[cache.end - start] for start in cache.starts], device=device)
        with self.steered.batch([row.program for row in rows], [row.ready.length for row in rows]):
            logits = self.passes(
                ids,
                mask=cache.mask(device),
                position_ids=position,
                cache=cache.cache,
                wanted=range(len(rows)),
            )
        assert logits is not None
        cache.advance()
        tokens = self._choose(logits, [row.uniforms for row in rows], [len(row.tokens) for row in rows])
        for k in reversed(range(len(rows))):
            if self._ended(rows[k], tokens[k]):
                yield self._remove(k)

    def give_back(self, count: int) -> list[Work]:
        """Take the youngest sequences out unfinished; they begin anew later, with the same outcome."""
        order = sorted(range(len(self.rows)), key=lambda k: len(self.rows[k].tokens))[:count]
        return [self._remove(k).work for k in sorted(order, reverse=True)]

    def withdraw(self, some: list[Ready]) -> None:
        """Take units out again whose admission failed halfway."""
        for k in reversed(range(len(self.rows))):
            if any(self.rows[k].ready is one for one in some):
                self._remove(k)

    def _remove(self, k: int) -> Growing:
        row = self.rows[k]
        self.cache.remove(k)
        last = self.rows.pop()
        if last is not row:
            self.rows[k] = last
        self.steered.release(row.work.unit)
        return row

    def _ended(self, row: Growing, token: int) -> bool:
        if token in self._ends:
            return True
        row.tokens.append(token)
        return len(row.tokens) >= self.generation.max_new_tokens

    def _choose(self, logits: Tensor, uniforms: list[Tensor | None], steps: list[int]) -> list[int]:
        drawn = [own[step] for own, step in zip(uniforms, steps) if own is not None]
        return self.generation.choose(logits, torch.stack(drawn) if drawn else None).tolist()


def ends_of(model: object) -> frozenset[int]:
    """The tokens that end a text."""
    config = getattr(model, "generation_config", None) or getattr(model, "config", None)
    ends = getattr(config, "eos_token_id", None)
    return frozenset(ends if isinstance(ends, (list, tuple)) else [] if ends is None else [ends])
