"""A unit while vLLM works on it: the requests it needs, and what their answers say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...metrics.base import Seen
from ...plan.generation import Generation
from ...plan.identity import digest
from ..work import Work
from .notes import Note

# Continuations of one token that a request is asked about at once, vLLM's own bound.
MOST_SINGLES = 128


@dataclass
class Asked:
    """A unit, the row of the table it holds, and the requests that are out.

    Requests are named `<unit>:ahead:<n>` (the text, and continuations of one token), `<unit>:tail:<n>` (the nth
    continuation behind the prompt) and `<unit>:back` (the text, looked back at by the unsteered model).
    """

    work: Work
    row: int
    seen: Seen
    out: set[str] = field(default_factory=set)


def requests_of(
    asked: Asked, ids: Mapping[str, list[int]], generation: Generation
) -> Iterator[tuple[str, list[int], str, dict[str, Any]]]:
    """`(kind, tokens, salt, sampling parameters)` of all that is asked of the steered model."""
    work, unit = asked.work, asked.work.unit
    prompt = list(unit.prompt.tokens)
    note = Note(asked.row, len(prompt), seed=unit.seed if generation.temperature else None)
    salt = digest(unit.program_id, list(unit.layers), unit.positions, len(prompt))
    singles = list(dict.fromkeys(ids[c][0] for c in work.continuations if len(ids[c]) == 1))
    chunks = [singles[k : k + MOST_SINGLES] for k in range(0, len(singles), MOST_SINGLES)]
    if work.generates or chunks:
        first = chunks.pop(0) if chunks else None
        length = generation.max_new_tokens if work.generates else 1
        yield "ahead:0", prompt, salt, _params(note, length, logprob_token_ids=first)
    for number, chunk in enumerate(chunks, 1):
        yield f"ahead:{number}", prompt, salt, _params(note, 1, logprob_token_ids=chunk)
    for number, continuation in enumerate(work.continuations):
        if len(ids[continuation]) > 1:
            tokens = [*prompt, *ids[continuation]]
            yield f"tail:{number}", tokens, salt, _params(note, 1, prompt_logprobs=0)


def looking_back(asked: Asked, reads: bool) -> tuple[str, list[int], str, dict[str, Any]]:
    """The request that looks back at the text with the unsteered model, and reads the stream there."""
    unit = asked.work.unit
    prompt = list(unit.prompt.tokens)
    note = Note(prompt=len(prompt), read=unit.id if reads else None)
    return "back", [*prompt, *(asked.seen.tokens or ())], "unsteered", _params(note, 1, prompt_logprobs=0)


def _params(note: Note, length: int, **further: Any) -> dict[str, Any]:
    return {"max_tokens": length, "extra_args": note.extra_args(), **further}


def behind_prompt(answer: Any, prompt: int) -> Tensor:
    """float32 `[n]`: the log-probability of each token of a request behind the prompt."""
    given = answer.prompt_token_ids
    return torch.tensor([answer.prompt_logprobs[k][given[k]].logprob for k in range(prompt, len(given))])


def at_once(answer: Any) -> dict[int, float]:
    """Token → its log-probability right behind the prompt, of the tokens that were asked for."""
    first = answer.outputs[0].logprobs
    return {token: found.logprob for token, found in first[0].items()} if first else {}
