"""Feels: does steering towards an emotion make its word likelier where a feeling is named?"""

from __future__ import annotations

from collections.abc import Sequence

from emosteer.programs import add

from .found import Found, Table
from .pictures import doses, figure
from .setting import Setting
from .statistics import interval, spearman

SENTENCES = (
    "Right now I feel",
    "If I had to name my mood in a word, it would be",
    "She says that she is feeling",
    "When they asked him how he was, he said that he felt",
)


def study(setting: Setting) -> Found:
    """Log-probability of each emotion's word over strength, against random directions of the same length."""
    sentences = SENTENCES[:2] if setting.quick else SENTENCES
    prompts = [list(setting.tok(text).input_ids) for text in sentences]
    words = {name: setting.word(f" {name}") for name in setting.concepts}
    strengths = [-s for s in reversed(setting.strengths)] + [0.0, *setting.strengths]
    units = [
        (direction, name, strength, k)
        for name in setting.concepts
        for direction in (name, *setting.random)
        for strength in strengths
        if strength or direction == name
        for k in range(len(sentences))
    ]
    scores = dict(
        zip(
            units,
            setting.log_probabilities(
                [prompts[k] for *_, k in units],
                [words[name] for _, name, _, _ in units],
                [add(direction, strength) if strength else None for direction, _, strength, _ in units],
            ),
        )
    )

    def change(direction: str, name: str, strength: float) -> list[float]:
        """Over the sentences, against the unsteered model."""
        if not strength:
            return [0.0] * len(sentences)
        plain = [scores[name, name, 0.0, k] for k in range(len(sentences))]
        return [scores[direction, name, strength, k] - plain[k] for k in range(len(sentences))]

    found = Found(
        "feels",
        "Does steering towards an emotion make its word likelier where a feeling is named?",
        f"{len(sentences)} sentences that a feeling's name would complete, {len(setting.concepts)} emotions, blocks "
        f"{setting.layers[0]} to {setting.layers[-1]}; log-probability of the emotion's word less the unsteered "
        f"model's. Control: {len(setting.random)} random directions of the same length. Bands: 95% bootstrap over "
        f"sentences and emotions.",
    )
    curves = {
        "own direction": _arm(setting, change, strengths, own=True),
        "random": _arm(setting, change, strengths, own=False),
    }
    rows, rising = [], 0
    for name in setting.concepts:
        means = [sum(change(name, name, s)) / len(sentences) for s in strengths]
        rho = spearman(strengths, means)
        top = setting.strengths[-1]
        control = [x for direction in setting.random for x in change(direction, name, top)]
        rising += rho > 0.5
        rows.append((name, f"{rho:+.2f}", f"{means[-1]:+.2f}", f"{sum(control) / len(control):+.2f}"))
        found.numbers[name] = {
            "strengths": strengths,
            "change": means,
            "rho": rho,
            "random_at_top": sum(control) / len(control),
        }
    low, high = curves["own direction"][-1][2:]
    found.findings.append(
        f"The word's log-probability rises with strength for {rising} of {len(setting.concepts)} emotions "
        f"(rank correlation beyond 0.5)."
    )
    found.findings.append(
        f"At strength {setting.strengths[-1]:g} it changes by {curves['own direction'][-1][1]:+.2f} on average "
        f"(95% {low:+.2f} to {high:+.2f}); random directions: {curves['random'][-1][1]:+.2f}."
    )
    found.tables.append(
        Table(
            f"log-probability of the emotion's word, at strength {setting.strengths[-1]:g}",
            ("emotion", "rank correlation with strength", "change", "random directions"),
            rows,
        )
    )
    drawn, axis = figure((6.5, 4))
    doses(axis, curves, "Δ log p of the emotion's word")
    found.pictures["feels.png"] = drawn
    found.numbers["rising"] = rising
    return found


def _arm(
    setting: Setting, change, strengths: Sequence[float], own: bool
) -> list[tuple[float, float, float, float]]:
    points = []
    for strength in strengths:
        values = [
            x
            for name in setting.concepts
            for direction in ((name,) if own else setting.random)
            for x in change(direction, name, strength)
        ]
        points.append((strength, sum(values) / len(values), *interval(values, setting.seed)))
    return points
