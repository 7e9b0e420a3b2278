"""Whether vLLM computes with a program what transformers does: one prompt through both, before anything is run."""

from __future__ import annotations

import torch

from emosteer.models.scoring import continuation_log_probabilities

from ..local import Runner
from ..local.steered import Steered
from ..work import Work
from .asked import behind_prompt, steered
from .server import Server

# Tokens of the prompt that are looked at.
LENGTH = 64

# Nats a token that two implementations may differ by on average; by far more where the stream is another.
FULL, HALF = 0.02, 0.2


def prove(server: Server, runner: Runner, work: Work, slots: int) -> None:
    """Compare the log-probabilities of a unit's prompt under its program, all but the first token as generated.

    Raises:
        RuntimeError: they differ.
    """
    unit = work.unit
    tokens = list(unit.prompt.tokens[: min(LENGTH, server.longest - 1)])
    if len(tokens) < 2:
        return
    local = Steered(runner.model, runner.bank, unit.layers, unit.positions, runner.relative, slots)
    with local.steering, local.holding([unit]) as rows, local.batch(rows, [1]):
        (wanted,) = continuation_log_probabilities(runner.model, [tokens[:1]], [tokens[1:]])
    extra = steered(work, runner.relative, prompt=1)
    server.ask("proof", tokens, max_tokens=1, prompt_logprobs=0, extra_args=extra)
    answers: list = []
    while not answers:
        answers = server.answers()
    apart = float((behind_prompt(answers[0], 1) - wanted.float().cpu()).abs().mean())
    allowed = FULL if runner.model.dtype == torch.float32 else HALF
    if not apart <= allowed:
        kind = type(runner.model).__name__
        raise RuntimeError(
            f"vLLM's {kind}, steered by {unit.program}, differs from that of transformers by {apart:.3f} nats a token "
            f"(at most {allowed} is rounding); it hands its stream along in a way that emosteer does not know: "
            f'use engine="local"'
        )
