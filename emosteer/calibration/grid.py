"""Running a grid of strengths: every opening under every arm, in mixed batches with a program a row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from emosteer.bank import Bank
from emosteer.models.capture import Capture
from emosteer.models.scoring import continuation_log_probabilities, device_of, padded, repetition
from emosteer.ops import project
from emosteer.programs import Program, add
from emosteer.steering import steer

from .measured import RANDOM, UNSTEERED, Measurement

Tokens = list[int]


@dataclass(frozen=True)
class Arm:
    """A direction (a concept, "random" or "unsteered") at a strength."""

    direction: str
    strength: float

    def program(self, sentence: int) -> Program | None:
        """Each sentence has a random direction of its own, so that the control is a mean over several."""
        if self.direction == UNSTEERED:
            return None
        name = f"{RANDOM} {sentence}" if self.direction == RANDOM else self.direction
        return add(name, self.strength)


class Grid:
    """One model, its openings and "feels" sentences; measures one set of layers after another."""

    def __init__(
        self,
        model: Any,
        tok: Any,
        bank: Bank,
        names: Sequence[str],
        openings: Sequence[str],
        feels: Sequence[str],
        max_new_tokens: int,
        batch_rows: int,
        seed: int,
    ) -> None:
        self.model, self.tok, self.names = model, tok, list(names)
        self.bank = with_random(bank, self.names, max(len(openings), len(feels)), seed)
        self.openings = [tok(text).input_ids for text in openings]
        self.feels = [tok(text).input_ids for text in feels]
        self.words = {name: tok(f" {name}", add_special_tokens=False).input_ids for name in names}
        self.max_new_tokens, self.batch_rows = max_new_tokens, batch_rows
        self.pad = tok.pad_token_id if tok.pad_token_id is not None else 0

    def measure(self, strengths: Sequence[float], layers: tuple[int, ...]) -> Iterator[Measurement]:
        """Unsteered, then every concept and the random control at every strength."""
        directions = [*self.names, RANDOM]
        arms = [Arm(UNSTEERED, 0.0), *(Arm(d, s) for d in directions for s in strengths)]
        units = [(arm, k) for arm in arms for k in range(len(self.openings))]
        texts = dict(zip(units, self._continue(units, layers)))
        losses = dict(zip(units, self._losses([(k, texts[arm, k]) for arm, k in units])))
        readings = dict(zip(units, self._readings([(k, texts[arm, k]) for arm, k in units], layers[-1])))
        words = self._words(arms, layers)
        plain = arms[0]
        for j, name in enumerate(self.names):
            for arm in arms:
                if arm.direction not in (name, RANDOM, UNSTEERED):
                    continue
                over = range(len(self.openings))
                yield Measurement(
                    name,
                    arm.direction,
                    layers,
                    arm.strength,
                    perplexity=median(math.exp(min(losses[arm, k], 50.0)) for k in over),
                    repetition=mean(repetition(texts[arm, k]) for k in over),
                    projection=mean(float(readings[arm, k][j] - readings[plain, k][j]) for k in over),
                    log_probability=words[arm, name] - words[plain, name],
                    text=self.tok.decode(texts[arm, 0], skip_special_tokens=True),
                )

    def _batches(self, units: Sequence) -> Iterator[Sequence]:
        for start in range(0, len(units), self.batch_rows):
            yield units[start : start + self.batch_rows]

    def _steered(self, batch: Sequence[tuple[Arm, int]], layers: tuple[int, ...]) -> Any:
        return steer(self.model, self.bank, [arm.program(k) for arm, k in batch], layers=layers)

    def _continue(self, units: Sequence[tuple[Arm, int]], layers: tuple[int, ...]) -> list[Tokens]:
        ends = self.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, (list, tuple)) else {ends}
        texts: list[Tokens] = []
        for batch in self._batches(units):
            ids, mask = padded([self.openings[k] for _, k in batch], self.pad, device_of(self.model))
            with self._steered(batch, layers), torch.no_grad():
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.pad,
                )
            for row in out[:, ids.shape[1] :].tolist():
                stop = next((i for i, token in enumerate(row) if token in ends), len(row))
                texts.append(row[: max(stop, 1)])
        return texts

    def _losses(self, texts: Sequence[tuple[int, Tokens]]) -> list[float]:
        """Mean negative log-probability of each continuation under the unsteered model."""
        found = []
        for batch in self._batches(texts):
            scores = continuation_log_probabilities(
                self.model, [self.openings[k] for k, _ in batch], [text for _, text in batch], pad=self.pad
            )
            found += [-float(s.mean()) for s in scores]
        return found

    def _readings(self, texts: Sequence[tuple[int, Tokens]], layer: int) -> list[Tensor]:
        """Each continuation's mean projection on the concepts, as the unsteered model reads it."""
        index = [self.bank.index(name) for name in self.names]
        directions = self.bank.directions[layer][index]
        unit = float(self.bank.scale[layer])
        capture = Capture(self.model, [layer])
        found: list[Tensor] = []

        def see(_layer: int, hidden: Tensor) -> None:
            v = directions.to(hidden.device)
            for row, (k, text) in enumerate(batch):
                start = len(self.openings[k])
                scores = project(hidden[row, start : start + len(text)].contiguous(), v)
                found.append((scores.mean(0) / unit).cpu())

        for batch in self._batches(texts):
            rows = [[*self.openings[k], *text] for k, text in batch]
            width = max(map(len, rows))
            ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
            capture.run(ids.to(capture.device), see)
        return found

    def _words(self, arms: Sequence[Arm], layers: tuple[int, ...]) -> dict[tuple[Arm, str], float]:
        """Log-probability of each concept's word after the "feels" sentences, steered."""
        wanted = [
            (arm, name) for arm in arms for name in self.names if arm.direction in (name, RANDOM, UNSTEERED)
        ]
        units = [(arm, name, k) for arm, name in wanted for k in range(len(self.feels))]
        total = dict.fromkeys(wanted, 0.0)
        for batch in self._batches(units):
            with self._steered([(arm, k) for arm, _, k in batch], layers):
                scores = continuation_log_probabilities(
                    self.model,
                    [self.feels[k] for *_, k in batch],
                    [self.words[name] for _, name, _ in batch],
                    pad=self.pad,
                )
            for (arm, name, _), score in zip(batch, scores):
                total[arm, name] += float(score.sum()) / len(self.feels)
        return total


def with_random(bank: Bank, names: Sequence[str], count: int, seed: int) -> Bank:
    """The named concepts and `count` random unit directions, each the same at every layer."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(count, bank.dim, generator=generator).to(bank.device)
    some = bank.subset(names)
    return Bank(
        [*some.names, *(f"{RANDOM} {k}" for k in range(count))],
        {layer: torch.cat([some.directions[layer], random]) for layer in some.layers},
        scale=some.scale,
        provenance=some.provenance,
    )
