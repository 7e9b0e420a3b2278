"""Keys and values: of a shared prompt, of a batch behind it, of sequences that come and go while others generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# Keys and values of one block: `[..., T, d]` each.
KV = tuple[Tensor, Tensor]


class PastLayer(DynamicLayer):
    """One block's keys and values `[B, H, p, d]`, given at the start; sliding windows are left to the mask."""

    def __init__(self, past: KV | None, columns: int, keep: bool) -> None:
        super().__init__()
        self._past, self._columns, self._keep = past, columns, keep

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> KV:
        if self._keep:
            self.keys, self.values = key_states, value_states
            self.is_initialized = True
        if self._past is None:
            return key_states, value_states
        batch = key_states.shape[0]
        before = [part.expand(batch, *part.shape[1:]) for part in self._past]
        return torch.cat([before[0], key_states], -2), torch.cat([before[1], value_states], -2)

    @property
    def new(self) -> KV:
        """What the pass added: `[B, H, n, d]`."""
        if self.keys is None or self.values is None:
            raise ValueError("a block put no keys and values into the cache")
        return self.keys, self.values

    def get_seq_length(self, *_args: Any, **_kwargs: Any) -> int:
        return self._columns

    def get_mask_sizes(self, query_length: Any, *_args: Any, **_kwargs: Any) -> tuple[int, int]:
        return self._columns + _length(query_length), 0


def past_cache(past: Sequence[KV | None], columns: int, *, keep: bool) -> Cache:
    """A cache of `columns` cached columns: one entry a block, None for a block that is not run or has none.

    Args:
        keep: whether what a pass adds is wanted afterwards (`layer.new`).
    """
    return Cache(layers=[PastLayer(one, columns, keep) for one in past])


def _length(query: Any) -> int:
    """Releases of transformers differ in whether they pass a number or the columns themselves."""
    return len(query) if isinstance(query, Tensor) else int(query)


@dataclass(frozen=True)
class Stripe:
    """A sequence's keys and values in one block, in pieces that follow one another: `[H, t_i, d]` each."""

    pieces: tuple[KV, ...]

    @property
    def length(self) -> int:
        return sum(keys.shape[-2] for keys, _ in self.pieces)

    def write(self, which: int, out: Tensor) -> None:
        """Put keys (0) or values (1) into `out` `[H, length, d]`."""
        at = 0
        for piece in self.pieces:
            width = piece[which].shape[-2]
            out[:, at : at + width] = piece[which]
            at += width


def side_by_side(rows: Sequence[Stripe], columns: int) -> KV:
    """`[B, H, columns, d]` of sequences of at most that length, padded on the left."""
    found = []
    for which in (0, 1):
        like = rows[0].pieces[0][which]
        out = like.new_zeros(len(rows), like.shape[0], columns, like.shape[-1])
        for row, stripe in zip(out, rows):
            stripe.write(which, row[:, columns - stripe.length :])
        found.append(out)
    return found[0], found[1]


class RowLayer(DynamicLayer):
    """One block of `RowCache`."""

    def __init__(self, owner: RowCache) -> None:
        super().__init__()
        self.owner = owner
        self.buffers: list[Tensor] = []

    def allocate(self, rows: int, columns: int, like: KV) -> None:
        self.buffers = [part.new_zeros(rows, part.shape[0], columns, part.shape[-1]) for part in like]

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> KV:
        own, found = self.owner, []
        for buffer, new in zip(self.buffers, (key_states, value_states)):
            buffer[: own.rows, :, own.end] = new[:, :, 0]
            found.append(buffer[: own.rows, :, own.begin : own.end + 1])
        return found[0], found[1]

    def get_seq_length(self, *_args: Any, **_kwargs: Any) -> int:
        return self.owner.end - self.owner.begin

    def get_mask_sizes(self, query_length: Any, *_args: Any, **_kwargs: Any) -> tuple[int, int]:
        return self.get_seq_length() + _length(query_length), 0


class RowCache:
    """Sequences of different ages that generate together: all end at the same column, each has its own start.

    The buffers are allocated once. A finished sequence's place is taken by the last sequence or by a new one; as
    sequences end, the first used column moves right, and everything is moved back when the buffers' end is
    reached.

    Args:
        capacity: sequences at most.
        width: columns that one sequence may need: its prompt and what it generates.
        blocks: of the model.
    """

    def __init__(self, capacity: int, width: int, blocks: int) -> None:
        self.capacity, self.width = capacity, width
        self.columns = width + max(32, width // 4)
        self.rows = 0
        self.begin = self.end = 0
        self.starts: list[int] = []
        self.layers = [RowLayer(self) for _ in range(blocks)]
        self.cache = Cache(layers=list(self.layers))

    def admit(self, stripes: Sequence[Stripe]) -> None:
        """Add a sequence: its stripe in each block."""
        length = stripes[0].length
        if not self.layers[0].buffers:
            for layer, stripe in zip(self.layers, stripes):
                layer.allocate(self.capacity, self.columns, stripe.pieces[0])
        if not self.rows:
            self.begin, self.end = 0, length
        self._place(length)
        for layer, stripe in zip(self.layers, stripes):
            for which, buffer in enumerate(layer.buffers):
                stripe.write(which, buffer[self.rows, :, self.end - length : self.end])
        self.starts.append(self.end - length)
        self.rows += 1
        self.begin = min(self.starts)

    def remove(self, row: int) -> None:
        """Drop a sequence; the last one takes its number."""
        last = self.rows - 1
        if row != last:
            for layer in self.layers:
                for buffer in layer.buffers:
                    span = slice(self.starts[last], self.end)
                    buffer[row, :, span] = buffer[last, :, span]
            self.starts[row] = self.starts[last]
        self.starts.pop()
        self.rows = last
        if self.starts:
            self.begin = min(self.starts)

    def advance(self) -> None:
        """A column was added to every sequence; make sure that the next one has a place."""
        self.end += 1
        self._place(0)

    def mask(self, device: torch.device) -> Tensor:
        """int64 `[B, columns in use + 1]` for the next token."""
        column = torch.arange(self.begin, self.end + 1, device=device)
        return (column >= torch.tensor(self.starts, device=device)[:, None]).long()

    def _place(self, length: int) -> None:
        """Move all sequences so that `length` columns fit before the end and one after it."""
        shift = 0
        if self.end < length:
            shift = length - self.end
        elif self.end >= self.columns:
            shift = -self.begin
        if not shift:
            return
        if self.end + shift >= self.columns or self.begin + shift < 0:
            raise AssertionError("a row is longer than the width that was promised")
        for layer in self.layers:
            for buffer in layer.buffers:
                kept = buffer[: self.rows, :, self.begin : self.end].clone()
                buffer[: self.rows, :, self.begin + shift : self.end + shift] = kept
        self.begin, self.end = self.begin + shift, self.end + shift
        self.starts = [start + shift for start in self.starts]
