"""Behaviour: do emotions change what a model does in a tight spot?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from emosteer.programs import Program, add

from .found import Found, Table
from .pictures import doses, figure
from .scenarios import Outcome, Scenario, shipped
from .setting import Setting
from .statistics import spearman, wilson

UNSTEERED = "unsteered"
# Emotions whose dose–response is drawn, those of the setting's concepts first.
ARMS = ("desperate", "calm")
ANSWER_TOKENS = {True: 48, False: 64}
SEEDS = {True: 2, False: 5}

# A choice has no interval of its own: smaller changes of its probability are not counted.
LEAST_CHANGE = 0.1

Arm = tuple[str, float]


def study(setting: Setting, scenarios: Sequence[Scenario] | None = None) -> Found:
    """How often each outcome happens, over strength, for some emotions and random directions."""
    scenarios = list(shipped() if scenarios is None else scenarios)
    names = [name for name in ARMS if name in setting.concepts] or list(setting.concepts[:2])
    strengths = setting.strengths[-2:] if setting.quick else setting.strengths
    arms: list[Arm] = [(UNSTEERED, 0.0), *((name, s) for name in (*names, "random") for s in strengths)]
    seeds = SEEDS[setting.quick]
    answers = _answers(setting, scenarios, arms, seeds)
    choices = _choices(setting, scenarios, arms)
    found = Found(
        "behaviour",
        "Do emotions change what the model does in a tight spot?",
        f"{len(scenarios)} scenarios, {seeds} sampled answers each under every arm ({', '.join(names)} and random "
        f"directions, one an answer, at strengths {', '.join(f'{s:g}' for s in strengths)} "
        f"on blocks {setting.layers[0]} "
        f"to {setting.layers[-1]}). Outcomes by pattern are shares of answers (95% Wilson intervals); choices are "
        f"probabilities of the first continuation given that it is one of them (random: mean and range). Apart: "
        f"intervals without overlap; for choices, outside that range and by 0.1 from the unsteered model.",
    )
    rows = []
    outcomes = [(scenario, outcome) for scenario in scenarios for outcome in scenario.outcomes]
    drawn, axes = figure((4.2 * 3, 3.2 * -(-len(outcomes) // 3)), -(-len(outcomes) // 3), 3)
    for axis, (scenario, outcome) in zip(getattr(axes, "flat", [axes]), outcomes):
        rated = {
            arm: _rate(
                setting, outcome, arm, answers[scenario.name, arm], choices.get((scenario.name, outcome.name))
            )
            for arm in arms
        }
        points = {arm: point for arm, point in rated.items() if point is not None}
        if len(points) < len(arms):
            found.findings.append(
                f"{scenario.name}, {outcome.name}: not judged, no judge {outcome.judge!r} was given."
            )
            continue
        plain = points[UNSTEERED, 0.0]
        curves = {
            name: [(0.0, *plain), *((s, *points[name, s]) for s in strengths)] for name in (*names, "random")
        }
        doses(axis, curves, "share" if not outcome.choice else "probability")
        axis.set_title(f"{scenario.name}: {outcome.name}", fontsize=9)
        here: dict[str, Any] = {}
        for name, curve in curves.items():
            rho = spearman([p[0] for p in curve], [p[1] for p in curve])
            here[name] = {"curve": curve, "rho": rho}
        last = {name: curve[-1] for name, curve in curves.items()}
        rows.append(
            (
                scenario.name,
                outcome.name,
                _show(plain),
                *(_show(last[name][1:]) for name in (*names, "random")),
            )
        )
        for name in names:
            here[name]["apart_at_top"] = _apart(outcome, last[name][1:], plain, last["random"][1:])
        found.numbers.setdefault(scenario.name, {})[outcome.name] = here
    moved = [
        f"{scenario}/{outcome} by {name}"
        for scenario, by in found.numbers.items()
        for outcome, here in by.items()
        for name in names
        if here[name]["apart_at_top"]
    ]
    tests = sum(len(by) for by in found.numbers.values()) * len(names)
    found.findings.append(
        f"At the highest strength {len(moved)} of {tests} outcomes stand apart from both the unsteered model and the "
        f"random directions" + (f": {', '.join(moved)}." if moved else ".")
    )
    found.tables.append(
        Table(
            f"outcomes, unsteered and at strength {strengths[-1]:g}",
            ("scenario", "outcome", UNSTEERED, *names, "random"),
            rows,
        )
    )
    found.tables.append(
        Table(
            "answers (first of each)",
            ("scenario", "arm", "answer"),
            [
                (scenario.name, _name(arm), answers[scenario.name, arm][0].replace("\n", " ")[:160])
                for scenario in scenarios
                for arm in arms
                if arm[1] in (0.0, strengths[-1])
            ],
        )
    )
    found.pictures["behaviour.png"] = drawn
    return found


def _program(setting: Setting, arm: Arm, number: int) -> Program | None:
    name, strength = arm
    if name == UNSTEERED:
        return None
    return add(setting.random[number % len(setting.random)] if name == "random" else name, strength)


def _answers(
    setting: Setting, scenarios: Sequence[Scenario], arms: Sequence[Arm], seeds: int
) -> dict[tuple[str, Arm], list[str]]:
    """All scenarios, arms and seeds in mixed batches."""
    units = [(scenario, arm, k) for scenario in scenarios for arm in arms for k in range(seeds)]
    prompts = {scenario.name: setting.chat(scenario.messages) for scenario in scenarios}
    texts = setting.generate(
        [prompts[scenario.name] for scenario, _, _ in units],
        [_program(setting, arm, k) for _, arm, k in units],
        max_new_tokens=ANSWER_TOKENS[setting.quick],
        sample=True,
    )
    found: dict[tuple[str, Arm], list[str]] = {}
    for (scenario, arm, _), text in zip(units, texts):
        found.setdefault((scenario.name, arm), []).append(setting.text(text))
    return found


def _choices(
    setting: Setting, scenarios: Sequence[Scenario], arms: Sequence[Arm]
) -> dict[tuple[str, str], dict[Arm, list[float]]]:
    """Probability of the first continuation among those offered; several random directions for the control."""
    units = [
        (scenario, outcome, arm, k, option)
        for scenario in scenarios
        for outcome in scenario.outcomes
        if outcome.choice
        for arm in arms
        for k in range(len(setting.random) if arm[0] == "random" else 1)
        for option in outcome.choice
    ]
    scores = setting.log_probabilities(
        [setting.chat(scenario.messages, begun=outcome.begun) for scenario, outcome, *_ in units],
        [setting.word(option) for *_, option in units],
        [_program(setting, arm, k) for _, _, arm, k, _ in units],
    )
    by: dict[tuple[str, str, Arm, int], list[float]] = {}
    for (scenario, outcome, arm, k, _), score in zip(units, scores):
        by.setdefault((scenario.name, outcome.name, arm, k), []).append(score)
    found: dict[tuple[str, str], dict[Arm, list[float]]] = {}
    for (scenario_name, outcome_name, arm, _), options in by.items():
        p = float(torch.tensor(options, dtype=torch.float64).softmax(0)[0])
        found.setdefault((scenario_name, outcome_name), {}).setdefault(arm, []).append(p)
    return found


def _rate(
    setting: Setting, outcome: Outcome, arm: Arm, answers: list[str], choices: dict[Arm, list[float]] | None
) -> tuple[float, float, float] | None:
    """`(share, low, high)`; None where nobody can judge."""
    if outcome.choice:
        assert choices is not None
        values = choices[arm]
        return sum(values) / len(values), min(values), max(values)
    if outcome.judge is not None:
        judge = setting.judges.get(outcome.judge)
        if judge is None:
            return None
        happened = sum(bool(judge(answer)) for answer in answers)
    else:
        happened = sum(outcome.happened(answer) for answer in answers)
    return (happened / len(answers), *wilson(happened, len(answers)))


def _apart(
    outcome: Outcome,
    own: tuple[float, float, float],
    plain: tuple[float, float, float],
    random: tuple[float, float, float],
) -> bool:
    """Whether an outcome stands apart from the unsteered model and from the random directions."""
    if outcome.choice:
        return abs(own[0] - plain[0]) >= LEAST_CHANGE and not random[1] <= own[0] <= random[2]
    return all(own[1] > other[2] or own[2] < other[1] for other in (plain, random))


def _show(point: tuple[float, float, float]) -> str:
    return f"{point[0]:.2f} ({point[1]:.2f}–{point[2]:.2f})"


def _name(arm: Arm) -> str:
    return arm[0] if not arm[1] else f"{arm[0]} {arm[1]:g}"
