"""Units without anything shared, for models whose state is not keys and values: batches of equal length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from emosteer.models.capture import Capture
from emosteer.models.patching import evaluating
from emosteer.models.scoring import continuation_log_probabilities, device_of
from emosteer.ops import project

from ...metrics.base import Seen
from ...metrics.reading import Readings
from ...plan.generation import Generation
from ..work import Work
from .held_rows import NO_ROW
from .memory import Budget
from .steered import Steered


def score(
    model: Any, steered: Steered, works: Sequence[Work], ids: dict[str, list[int]], budget: Budget
) -> list[dict[str, Tensor]]:
    """For each unit, continuation → log-probability of each of its tokens."""
    found: list[dict[str, Tensor]] = [{} for _ in works]
    jobs = [(k, c) for k, work in enumerate(works) for c in work.continuations]

    def shape(job: tuple[int, str]) -> tuple[int, int]:
        return len(works[job[0]].unit.prompt.tokens), len(ids[job[1]])

    for batch in _equal(jobs, shape, budget):
        units = [works[k].unit for k, _ in batch]
        with steered.holding(units) as rows, steered.batch(rows, [len(u.prompt.tokens) for u in units]):
            scores = continuation_log_probabilities(
                model, [u.prompt.tokens for u in units], [ids[c] for _, c in batch]
            )
        for (k, c), score in zip(batch, scores):
            found[k][c] = score.cpu()
    return found


def generate(
    model: Any, steered: Steered, works: Sequence[Work], generation: Generation, budget: Budget
) -> list[tuple[int, ...]]:
    """The tokens of each unit's text, by the model's own `generate`."""
    found: dict[int, tuple[int, ...]] = {}
    device = device_of(model)

    def shape(k: int) -> tuple[int, int]:
        return len(works[k].unit.prompt.tokens), generation.max_new_tokens

    for batch in _equal(list(range(len(works))), shape, budget):
        units = [works[k].unit for k in batch]
        ids = torch.tensor([u.prompt.tokens for u in units], device=device)
        drawn = [generation.uniforms(u.seed, u.prompt.tokens) for u in units]
        choice = _Choice(generation, drawn, ids.shape[1])
        with (
            steered.holding(units) as rows,
            steered.batch(rows, [ids.shape[1]] * len(units)),
            evaluating(model),
            torch.no_grad(),
        ):
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=generation.max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                pad_token_id=0,
                logits_processor=[choice],
            )
        ends = _ends(model)
        for k, row in zip(batch, out[:, ids.shape[1] :].tolist()):
            stop = next((i for i, token in enumerate(row) if token in ends), len(row))
            found[k] = tuple(row[:stop])
    return [found[k] for k in range(len(works))]


class _Choice:
    """Leaves nothing but the chosen token, so that greedy search takes it."""

    def __init__(self, generation: Generation, uniforms: list[Tensor | None], prompt: int) -> None:
        self.generation, self.uniforms, self.prompt = generation, uniforms, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.prompt
        drawn = [own[step] for own in self.uniforms if own is not None]
        token = self.generation.choose(scores, torch.stack(drawn) if drawn else None)
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


def _ends(model: Any) -> frozenset[int]:
    from .pool import ends_of

    return ends_of(model)


def look_back(
    model: Any, steered: Steered, some: Sequence[tuple[Seen, Sequence[Readings]]], budget: Budget
) -> None:
    """Fill in what the unsteered model makes of texts: log-probabilities and projections."""

    def shape(one: tuple[Seen, Sequence[Readings]]) -> tuple[int, int]:
        return len(one[0].unit.prompt.tokens), len(one[0].tokens or ())

    for batch in _equal(list(some), shape, budget):
        prompts = [seen.unit.prompt.tokens for seen, _ in batch]
        texts = [seen.tokens or () for seen, _ in batch]
        length = len(prompts[0])
        with steered.batch([NO_ROW] * len(batch), [length] * len(batch)):
            for (seen, _), scores in zip(batch, continuation_log_probabilities(model, prompts, texts)):
                seen.text_log_probabilities = scores.cpu()
            layers = sorted({r.layer for _, readings in batch for r in readings if r.layer is not None})
            if not layers:
                continue

            def see(layer: int, hidden: Tensor, batch=batch, length=length) -> None:
                for row, (seen, readings) in enumerate(batch):
                    for metric in readings:
                        if metric.layer == layer and metric.bank is not None and metric.concepts is not None:
                            index = [metric.bank.index(concept) for concept in metric.concepts]
                            v = metric.bank.directions[layer][index].to(hidden.device)
                            p = project(hidden[row, length:].contiguous(), v).mean(0)
                            seen.projections[metric.fingerprint] = (
                                p / metric.bank.scale.get(layer, 1.0)
                            ).cpu()

            ids = torch.tensor([[*p, *t] for p, t in zip(prompts, texts)])
            capture = Capture(model, layers)
            capture.run(ids.to(capture.device), see)


def _equal(items: list, shape: Any, budget: Budget) -> Iterator[list]:
    """Items of one shape `(prompt, rest)` together, under the budget; the longest first."""
    for (prompt, rest), same in groupby(sorted(items, key=shape, reverse=True), key=shape):
        group = list(same)
        rows = min(budget.rows_of_width(prompt + rest), budget.rows)
        for start in range(0, len(group), rows):
            yield group[start : start + rows]
