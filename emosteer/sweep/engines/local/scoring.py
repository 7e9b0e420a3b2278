"""Log-probabilities of continuations behind prompts that have been run, and of finished texts looked back at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from emosteer.ops import project

from ...metrics.base import Seen
from ...metrics.reading import Readings
from .held_rows import NO_ROW
from .memory import Budget
from .passes import Passes
from .prefill import Ready, Tail, extend
from .prefix import Prefix
from .steered import Steered

T = TypeVar("T")


def score_continuations(
    passes: Passes, steered: Steered, some: Sequence[Ready], ids: dict[str, list[int]], budget: Budget
) -> list[dict[str, Tensor]]:
    """For each unit, continuation → log-probability of each of its tokens, float32 on the CPU.

    The first token's comes from the logits after the prompt; only continuations of several tokens are run.

    Args:
        ids: continuation → token ids.
    """
    found: list[dict[str, list[Tensor]]] = []
    longer: list[tuple[int, str]] = []
    first = torch.stack([ready.logits for ready in some]).float().log_softmax(-1)
    for row, ready in enumerate(some):
        own = {c: [first[row, ids[c][0]][None].cpu()] for c in ready.work.continuations}
        longer += [(row, c) for c in own if len(ids[c]) > 1]
        found.append(own)
    for batch in _batches(longer, [len(ids[c]) - 1 for _, c in longer], budget):
        with steered.holding([some[row].work.unit for row, _ in batch]) as programs:
            tails = [
                Tail(some[row].stripes, ids[c][:-1], program, some[row].length)
                for (row, c), program in zip(batch, programs)
            ]
            for (row, c), logits in zip(batch, extend(passes, steered, tails)):
                found[row][c].append(_chosen(logits, ids[c][1:]))
    return [{c: torch.cat(parts) for c, parts in own.items()} for own in found]


@dataclass
class Written:
    """A unit's text, to be looked back at by the unsteered model."""

    seen: Seen
    prefix: Prefix
    readings: Sequence[Readings]


def look_back(passes: Passes, steered: Steered, some: Sequence[Written], budget: Budget) -> None:
    """Fill in what the unsteered model makes of texts: log-probabilities and projections."""
    for batch in _batches(list(some), [len(one.seen.tokens or ()) for one in some], budget):
        layers = sorted({r.layer for one in batch for r in one.readings if r.layer is not None})
        streams: dict[int, Tensor] = {}

        def keeping(layer: int, into: dict[int, Tensor] = streams):
            return lambda hidden: into.__setitem__(layer, hidden.clone())

        tails = [
            Tail(one.prefix.stripes, one.seen.tokens or (), NO_ROW, len(one.prefix.prompt.tokens))
            for one in batch
        ]
        outcome = extend(passes, steered, tails, {layer: keeping(layer) for layer in layers})
        for row, (one, logits) in enumerate(zip(batch, outcome)):
            tokens = list(one.seen.tokens or ())
            assert one.prefix.last is not None
            every = torch.cat([one.prefix.last[None], logits[:-1]])
            one.seen.text_log_probabilities = _chosen(every, tokens)
            for metric in one.readings:
                one.seen.projections[metric.fingerprint] = _read(metric, streams, row, len(tokens))


def _read(metric: Readings, streams: dict[int, Tensor], row: int, length: int) -> Tensor:
    assert metric.bank is not None
    assert metric.layer is not None
    assert metric.concepts is not None
    index = [metric.bank.index(concept) for concept in metric.concepts]
    hidden = streams[metric.layer][row, :length].contiguous()
    directions = metric.bank.directions[metric.layer][index].to(hidden.device)
    unit = metric.bank.scale.get(metric.layer, 1.0)
    return (project(hidden, directions).mean(0) / unit).cpu()


def _chosen(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    chosen = torch.tensor(list(tokens), dtype=torch.long, device=logits.device)
    return logits.float().log_softmax(-1).gather(1, chosen[:, None])[:, 0].cpu()


def _batches(items: list[T], widths: list[int], budget: Budget) -> Iterator[list[T]]:
    """Items of similar width together, under the budget of tokens and of logits."""
    order = sorted(range(len(items)), key=lambda k: widths[k], reverse=True)
    while order:
        width = max(widths[order[0]], 1)
        rows = max(min(budget.rows_of_width(width), 4 * budget.rows // width), 1)
        yield [items[k] for k in order[:rows]]
        order = order[rows:]
