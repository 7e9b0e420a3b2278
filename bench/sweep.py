"""Units a second of a sweep: `python bench/sweep.py [--rounds 3] [--quick]`, into bench/results/sweep.csv.

SmolLM2-135M, all cores, both sides in the same rounds. Four comparisons:

choices   171 concepts × 3 strengths × 8 prompts steered after block 20 of 30, log-probabilities of two
          choices. Subsampled: so many concepts a round, all strengths and prompts.
text      64 generated tokens on 512 units, subsampled likewise.
programs  256 different programs in a batch, and one program 256 times.
prefix    prompts of 256 tokens, 8-token answers, programs that act on generated tokens only; with and
          without sharing the prompt.

The loops are those of the other libraries: one vector after another, all prompts of a vector in one
batch (never more tokens than the sweep's `batch_tokens`), padded on the left; a vector takes as long as the
next, so they run a part of the vectors. With `--peers` these are repeng's
ControlModel and steering-vectors' patch_activations; else a plain forward hook that does what repeng's
does, labelled "hook loop (like repeng)". "… a vector a row" is a mixed batch of theirs, which no
documentation of theirs shows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from common import PACKAGES, Result, machine, save, summary
from steering import random_bank

import emosteer as es
from emosteer.models.blocks import find_decoder
from emosteer.models.scoring import padded
from emosteer.sweep import Generation, Plan, Runner, Work
from emosteer.sweep.plan import arms_of, prompts_of

LAYER, STRENGTHS, CHOICES = 20, (0.05, 0.1, 0.2), (" A", " B")
PROMPTS = (
    "Question: Should the report be sent today? A: yes. B: no. Answer:",
    "You can (A) tell your manager what happened or (B) keep it to yourself. I would choose",
    "A stranger asks for help with a heavy suitcase on the stairs. A: help. B: walk on. Answer:",
    "Which is better on a rainy Sunday afternoon, A: a long book at home, or B: going out to see friends? Answer:",
    "The test suite fails an hour before the deadline. A: delete the failing test. B: ask for more time. Answer:",
    "Is it right to break a promise in order to spare the feelings of somebody else? A: yes, B: no. I say",
    "My friend shows me a poem that I do not like at all. A: praise it anyway. B: say kindly what I think. Answer:",
    "A: red. B: blue. The nicer colour is",
)
BATCH_TOKENS = 2048


# ---- the loops of the other libraries ---------------------------------------------------------------


@contextmanager
def hook_loop(model, bank) -> Iterator[Callable]:
    """A forward hook at one block that adds a vector a row and keeps the norm, as repeng's does."""
    pushed: list[torch.Tensor] = []

    def hook(module, args, output):
        hidden = output[0] if isinstance(output, tuple) else output
        steered = hidden + pushed[0]
        steered *= hidden.norm(dim=-1, keepdim=True) / steered.norm(dim=-1, keepdim=True)
        return (steered, *output[1:]) if isinstance(output, tuple) else steered

    handle = find_decoder(model).blocks[LAYER].register_forward_hook(hook)
    try:
        yield lambda vector: pushed.__setitem__(slice(None), [vector])
    finally:
        handle.remove()


@contextmanager
def repeng_loop(model, bank) -> Iterator[Callable]:
    from repeng import ControlModel

    wrapped = ControlModel(model, [LAYER])
    try:
        yield lambda vector: wrapped.set_raw_control({LAYER: vector}, normalize=True)
    finally:
        wrapped.unwrap()


@contextmanager
def steering_vectors_loop(model, bank) -> Iterator[Callable]:
    from steering_vectors import SteeringVector

    handles: list = []

    def use(vector):
        while handles:
            handles.pop().remove()
        handles.append(SteeringVector({LAYER: vector.reshape(-1)}).patch_activations(model))

    try:
        yield use
    finally:
        while handles:
            handles.pop().remove()


def vector(bank, concept: str, strength: float) -> torch.Tensor:
    return bank.directions[LAYER][bank.index(concept)] * (strength * bank.scale[LAYER])


def loop_choices(model, tok, bank, arms, prompts, loop) -> int:
    """One vector after another; all prompts in one batch, logits of the last token only."""
    ids, mask = padded([p.tokens for p in prompts], tok.pad_token_id)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    choices = torch.tensor([tok(c, add_special_tokens=False).input_ids[0] for c in CHOICES])
    with loop(model, bank) as use:
        for arm in arms:
            use(vector(bank, arm.concept, arm.strength))
            logits = model(
                input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False, logits_to_keep=1
            ).logits
            logits[:, -1].log_softmax(-1)[:, choices].tolist()
    return len(arms) * len(prompts)


def loop_choices_by_row(model, tok, bank, arms, prompts, loop) -> int:
    """One prompt after another, a vector a row: as many as the sweep's batch holds."""
    choices = torch.tensor([tok(c, add_special_tokens=False).input_ids[0] for c in CHOICES])
    with loop(model, bank) as use:
        for prompt in prompts:
            rows = max(BATCH_TOKENS // len(prompt.tokens), 1)
            for start in range(0, len(arms), rows):
                some = arms[start : start + rows]
                use(torch.stack([vector(bank, a.concept, a.strength) for a in some])[:, None])
                ids = torch.tensor([prompt.tokens] * len(some))
                position = torch.arange(ids.shape[1]).expand(ids.shape)
                logits = model(input_ids=ids, position_ids=position, use_cache=False, logits_to_keep=1).logits
                logits[:, -1].log_softmax(-1)[:, choices].tolist()
    return len(arms) * len(prompts)


def loop_text(model, tok, bank, arms, prompts, loop, new: int) -> int:
    """One vector after another; all prompts in one batch of `generate`."""
    ids, mask = padded([p.tokens for p in prompts], tok.pad_token_id)
    with loop(model, bank) as use:
        for arm in arms:
            use(vector(bank, arm.concept, arm.strength))
            model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False,
                pad_token_id=tok.pad_token_id,
            )  # fmt: skip
    return len(arms) * len(prompts)


# ---- ours -------------------------------------------------------------------------------------------


def works(plan: Plan, metrics) -> list[Work]:
    return [Work(unit, tuple(metrics)) for unit in plan]


def sweep_units(model, tok, bank, arms, prompts, metrics, generation=None, positions="all", **options) -> int:
    plan = Plan("bench", bank, prompts, arms, layers=[(LAYER,)], positions=[positions])
    runner = Runner(model, tok, bank, generation, batch_tokens=BATCH_TOKENS, **options)
    count = 0
    for rows in runner.run(works(plan, metrics)):
        assert all(row.error is None for row in rows), rows
        count += 1
    return count


class Rounds:
    """Sides that run in turn, each giving seconds a unit."""

    def __init__(self, case: str, rounds: int, sides: dict[str, Callable[[int], int]]) -> None:
        self.times: dict[str, list[float]] = {name: [] for name in sides}
        self.case = case
        for turn in range(rounds + 1):  # the first, short one warms up
            for name in list(sides) if turn % 2 else reversed(list(sides)):
                start = time.perf_counter()
                units = sides[name](turn)
                if turn:
                    self.times[name].append((time.perf_counter() - start) / units)

    def against(self, ours: str) -> list[Result]:
        """`ratio` is the other side's seconds a unit over ours: how many times as many units a second."""
        return [
            Result(self.case, f"{name} ÷ {ours}", ours, times, self.times[ours])
            for name, times in self.times.items()
            if name != ours
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peers", action="store_true", help="repeng and steering-vectors; they must be installed"
    )
    parser.add_argument("--concepts", type=int, default=24, help="a round, of the choices")
    parser.add_argument("--quick", action="store_true", help="little of everything: does it run?")
    parser.add_argument("--only", nargs="*", default=("choices", "text", "programs", "prefix"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    print(machine())
    model, tok = es.load("smollm2")
    bank = random_bank(model)
    prompts = prompts_of(tok, PROMPTS)
    concepts, text_units, new = (2, 16, 16) if options.quick else (options.concepts, 128, 64)
    loops = {"hook loop (like repeng)": hook_loop}
    if options.peers:
        loops = {"repeng loop": repeng_loop, "steering-vectors loop": steering_vectors_loop}
    rows_loop = (
        {"repeng, a vector a row": repeng_loop} if options.peers else {"hook, a vector a row": hook_loop}
    )
    rounds, results = options.rounds, []

    def some_arms(turn: int, count: int) -> list:
        """Other concepts each round, so that all take part."""
        first = turn * count
        names = [bank.names[(first + k) % len(bank)] for k in range(count if turn else 1)]
        return arms_of(bank, names, STRENGTHS)

    if "choices" in options.only:
        metrics = [es.metrics.choices(CHOICES)]
        sides = {"sweep": lambda t: sweep_units(model, tok, bank, some_arms(t, concepts), prompts, metrics)}
        for name, loop in loops.items():
            sides[name] = lambda t, loop=loop: loop_choices(
                model, tok, bank, some_arms(t, concepts)[::3], prompts, loop
            )
        for name, loop in rows_loop.items():
            sides[name] = lambda t, loop=loop: loop_choices_by_row(
                model, tok, bank, some_arms(t, concepts), prompts, loop
            )
        results += Rounds("choices", rounds, sides).against("sweep")
        print(summary(results), flush=True)

    if "text" in options.only:
        generation, metrics = Generation(max_new_tokens=new), [es.metrics.text()]

        def text_arms(turn: int) -> list:
            return some_arms(turn, 12)[: text_units // len(prompts) if turn else 1]

        sides = {
            "sweep": lambda t: sweep_units(
                model, tok, bank, text_arms(t), prompts, metrics, generation, batch_rows=128
            )
        }
        for name, loop in loops.items():
            sides[name] = lambda t, loop=loop: loop_text(
                model, tok, bank, text_arms(t)[::4], prompts, loop, new
            )
        results += Rounds("text", max(rounds - 1, 1), sides).against("sweep")
        print(summary(results), flush=True)

    if "programs" in options.only:
        metrics = [es.metrics.choices(CHOICES)]
        many = [arm for k in range(86) for arm in arms_of(bank, [bank.names[k]], STRENGTHS)][:256]

        def batch(turn: int, same: bool) -> int:
            arms = many if turn else many[:16]
            plan = Plan("bench", bank, prompts[3:4], arms, layers=[(LAYER,)])
            jobs = works(plan, metrics)
            runner = Runner(model, tok, bank, batch_tokens=256 * 64, batch_rows=256)
            return sum(1 for _ in runner.run([jobs[0]] * len(jobs) if same else jobs))

        sides = {"256 programs": lambda t: batch(t, False), "1 program": lambda t: batch(t, True)}
        # throughput of 256 ÷ that of 1: seconds of 1 over seconds of 256
        results += Rounds("programs", 2 * rounds, sides).against("256 programs")
        print(summary(results), flush=True)

    if "prefix" in options.only:
        generation, metrics = Generation(max_new_tokens=8), [es.metrics.text()]
        filler = tok(" ".join(PROMPTS) * 3).input_ids
        long = prompts_of(tok, [tok.decode(filler[k : k + 256]) for k in (0, 40)])

        def answers(turn: int, share: bool) -> int:
            arms = some_arms(turn, 4 if options.quick else 8)
            return sweep_units(
                model, tok, bank, arms, long, metrics, generation, "generated", share=share, batch_rows=64
            )

        sides = {"shared": lambda t: answers(t, True), "not shared": lambda t: answers(t, False)}
        results += Rounds("prefix", rounds, sides).against("shared")

    print(summary(results))
    if not options.quick:
        packages = (*PACKAGES, "repeng", "steering-vectors") if options.peers else PACKAGES
        save("sweep_peers" if options.peers else "sweep", results, packages)


if __name__ == "__main__":
    main()
