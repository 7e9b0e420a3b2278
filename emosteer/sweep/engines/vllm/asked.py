"""A unit while vLLM works on it: the requests it needs, and what their answers say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from emosteer.vllm import params

from ...metrics.base import Seen
from ...plan.generation import Generation
from ..work import Work
from .banks import READ, STEER, Banks

# Name of the entry of vLLM's `additional_config` with the settings of generated text, and of a request's `extra_args`
# with the seed of its draws (`drawing`). The latter is no key of `emosteer.vllm`, which begin with "emosteer".
SETTINGS, SEED = "emosteer_generation", "sweep_seed"

# Continuations of one token that a request is asked about at once, vLLM's own bound.
MOST_SINGLES = 128


@dataclass
class Asked:
    """A unit, and the requests that are out.

    Requests are named `<unit>:ahead:<n>` (the text, and continuations of one token), `<unit>:tail:<n>` (the nth
    continuation behind the prompt) and `<unit>:back` (the text, looked back at by the unsteered model).
    """

    work: Work
    seen: Seen
    out: set[str] = field(default_factory=set)


def requests_of(
    work: Work, ids: Mapping[str, list[int]], generation: Generation, relative: bool
) -> Iterator[tuple[str, list[int], dict[str, Any]]]:
    """`(kind, tokens, sampling parameters)` of all that is asked of the steered model."""
    prompt = list(work.unit.prompt.tokens)
    extra = steered(work, relative)
    singles = list(dict.fromkeys(ids[c][0] for c in work.continuations if len(ids[c]) == 1))
    chunks = [singles[k : k + MOST_SINGLES] for k in range(0, len(singles), MOST_SINGLES)]
    if work.generates or chunks:
        first = chunks.pop(0) if chunks else None
        length = generation.max_new_tokens if work.generates else 1
        drawn = {**extra, SEED: work.unit.seed} if generation.temperature else extra
        yield "ahead:0", prompt, _params(drawn, length, logprob_token_ids=first)
    for number, chunk in enumerate(chunks, 1):
        yield f"ahead:{number}", prompt, _params(extra, 1, logprob_token_ids=chunk)
    for number, continuation in enumerate(work.continuations):
        if len(ids[continuation]) > 1:
            tokens = [*prompt, *ids[continuation]]
            yield f"tail:{number}", tokens, _params(extra, 1, prompt_logprobs=0)


def steered(work: Work, relative: bool, prompt: int | None = None) -> dict[str, Any]:
    """What a request says of its program; `prompt`: tokens that count as the prompt, the unit's unless given."""
    unit = work.unit
    if not unit.program.slots:
        return {}
    return params(
        unit.program,
        bank=STEER,
        layers=unit.layers,
        positions=unit.positions,
        relative=relative,
        prompt=prompt or len(unit.prompt.tokens),
    )


def looking_back(asked: Asked, banks: Banks, reads: bool) -> tuple[str, list[int], dict[str, Any]]:
    """The request that looks back at the text with the unsteered model, and reads the stream there."""
    prompt = list(asked.work.unit.prompt.tokens)
    extra: dict[str, Any] = {}
    if reads:
        extra = params(
            read=banks.read,
            read_bank=READ,
            read_layers=banks.readable,
            read_positions=slice(len(prompt), None),
            read_as="mean",
            read_unit="projection",
        )
    return "back", [*prompt, *(asked.seen.tokens or ())], _params(extra, 1, prompt_logprobs=0)


def _params(extra: dict[str, Any], length: int, **further: Any) -> dict[str, Any]:
    return {"max_tokens": length, "extra_args": extra, **further}


def behind_prompt(answer: Any, prompt: int) -> Tensor:
    """float32 `[n]`: the log-probability of each token of a request behind the prompt."""
    given = answer.prompt_token_ids
    return torch.tensor([answer.prompt_logprobs[k][given[k]].logprob for k in range(prompt, len(given))])


def at_once(answer: Any) -> dict[int, float]:
    """Token → its log-probability right behind the prompt, of the tokens that were asked for."""
    first = answer.outputs[0].logprobs
    return {token: found.logprob for token, found in first[0].items()} if first else {}
