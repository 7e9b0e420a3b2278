"""What is asked for one text, and the choice and end of each row of a batch by its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from emosteer.programs import Program
from emosteer.sweep.plan import Generation


@dataclass(eq=False)
class Request:
    """One text to generate.

    Attributes:
        tokens: of the prompt.
        program: what it is steered by.
        generation: how its tokens are chosen, and how many there may be.
        seed: of its random numbers, which are its own: whatever shares the batch does not matter.
        stops: strings that end the text and are not part of it.
        answer, error: what came of it; neither while it waits.
    """

    tokens: tuple[int, ...]
    program: Program
    generation: Generation
    seed: int = 0
    stops: tuple[str, ...] = ()
    answer: Answer | None = None
    error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether it has been answered, or cannot be."""
        return self.answer is not None or self.error is not None


@dataclass(frozen=True)
class Answer:
    """A text.

    Attributes:
        text: without the string that ended it.
        tokens: how many were generated.
        full: whether it ended because there may be no more tokens.
    """

    text: str
    tokens: int
    full: bool


class Choice:
    """A logits processor that leaves each row one token: the one that its own settings choose."""

    def __init__(self, requests: Sequence[Request], columns: int) -> None:
        self._columns = columns
        self._uniforms = [r.generation.uniforms(r.seed, r.tokens) for r in requests]
        self._alike: dict[Generation, list[int]] = {}
        for row, request in enumerate(requests):
            self._alike.setdefault(replace(request.generation, max_new_tokens=1), []).append(row)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self._columns
        token = torch.zeros(len(scores), 1, dtype=torch.int64, device=scores.device)
        for generation, rows in self._alike.items():
            drawn = [own[min(step, len(own) - 1)] for k in rows if (own := self._uniforms[k]) is not None]
            token[rows, 0] = generation.choose(scores[rows], torch.stack(drawn) if drawn else None)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


class Ends:
    """A stopping criterion that ends each row by itself: at the end of text, its strings or its length."""

    def __init__(self, requests: Sequence[Request], columns: int, tok: Any, ends: frozenset[int]) -> None:
        self._requests, self._columns, self._tok, self._ends = requests, columns, tok, ends
        self.length: list[int | None] = [None] * len(requests)

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        for row, request in enumerate(self._requests):
            if self.length[row] is None and self._ended(request, input_ids[row, self._columns :]):
                self.length[row] = input_ids.shape[1] - self._columns
        return torch.tensor([length is not None for length in self.length], device=input_ids.device)

    def _ended(self, request: Request, made: Tensor) -> bool:
        if len(made) >= request.generation.max_new_tokens or int(made[-1]) in self._ends:
            return True
        if not request.stops:
            return False
        # A character is at most four tokens, those of its bytes.
        tail = made[-4 * (max(map(len, request.stops)) + 1) :].tolist()
        text = self._tok.decode(tail, skip_special_tokens=True)
        return any(stop in text for stop in request.stops)

    def answers(self, sequences: Tensor) -> list[Answer]:
        """What the rows say, of the sequences that `generate` returned."""
        found = []
        for row, request in enumerate(self._requests):
            made = sequences[row, self._columns :][: self.length[row]].tolist()
            ended = bool(made) and made[-1] in self._ends
            text = self._tok.decode(made[:-1] if ended else made, skip_special_tokens=True)
            cuts = [at for stop in request.stops if (at := text.find(stop)) >= 0]
            found.append(Answer(text[: min(cuts)] if cuts else text, len(made), not (ended or cuts)))
        return found
