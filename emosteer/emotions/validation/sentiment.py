"""Sentiment: does the text that is written under a direction turn pleasant or unpleasant?"""

from __future__ import annotations

from emosteer.calibration import OPENINGS
from emosteer.models.scoring import repetition
from emosteer.programs import add

from .found import Found, Table
from .pictures import doses, figure
from .setting import Setting
from .statistics import interval

PLEASANT, UNPLEASANT = ("joyful", "calm"), ("desperate", "sad", "afraid")
NEW_TOKENS = 30


def study(setting: Setting) -> Found:
    """The compound score (vaderSentiment) of greedy continuations of neutral openings, over strength."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    names = [name for name in (*PLEASANT, *UNPLEASANT) if name in setting.concepts]
    arms = [(None, 0.0), *((name, s) for name in (*names, "random") for s in setting.strengths)]
    prompts = [list(setting.tok(text).input_ids) for text in OPENINGS]
    units = [(arm, k) for arm in arms for k in range(len(prompts))]
    programs = [
        add(setting.random[k % len(setting.random)] if name == "random" else name, s) if name else None
        for (name, s), k in units
    ]
    texts = setting.generate([prompts[k] for _, k in units], programs, max_new_tokens=NEW_TOKENS)
    judge = SentimentIntensityAnalyzer()
    scores: dict[tuple[str | None, float], list[float]] = {}
    loops: dict[tuple[str | None, float], list[float]] = {}
    first: dict[tuple[str | None, float], str] = {}
    for (arm, _), text in zip(units, texts):
        said = setting.text(text)
        first.setdefault(arm, said)
        scores.setdefault(arm, []).append(judge.polarity_scores(said)["compound"])
        loops.setdefault(arm, []).append(repetition(text))
    points = {arm: (sum(v) / len(v), *interval(v, setting.seed)) for arm, v in scores.items()}
    plain = points[None, 0.0]
    curves = {
        name: [(0.0, *plain), *((s, *points[name, s]) for s in setting.strengths)]
        for name in (*names, "random")
    }
    found = Found(
        "sentiment",
        "Does the text written under a direction turn pleasant or unpleasant?",
        f"{len(OPENINGS)} neutral openings, {NEW_TOKENS} tokens greedily, blocks {setting.layers[0]} to "
        f"{setting.layers[-1]}; vaderSentiment's compound score (−1 to 1). Random: {len(setting.random)} directions. "
        f"Bands: 95% bootstrap over openings. Repetition is the share of 3-grams that occurred before.",
    )
    top = setting.strengths[-1]
    found.findings.append(
        f"Unsteered {plain[0]:+.2f}; at strength {top:g}: "
        + ", ".join(f"{name} {points[name, top][0]:+.2f}" for name in (*names, "random"))
        + "."
    )
    pleasant, unpleasant = ([n for n in group if n in names] for group in (PLEASANT, UNPLEASANT))
    if pleasant and unpleasant:
        gap = max(points[n, top][0] for n in pleasant) - min(points[n, top][0] for n in unpleasant)
        found.findings.append(f"Between the most pleasant and the most unpleasant direction lie {gap:.2f}.")
        found.numbers["gap_at_top"] = gap
    found.tables.append(
        Table(
            "continuations of the first opening",
            ("direction", "strength", "sentiment of all", "repetition", "text"),
            [
                (
                    name or "unsteered",
                    f"{s:g}",
                    f"{points[name, s][0]:+.2f}",
                    f"{sum(loops[name, s]) / len(loops[name, s]):.2f}",
                    first[name, s].replace("\n", " ")[:140],
                )
                for name, s in arms
            ],
        )
    )
    found.numbers |= {"unsteered": plain, "curves": curves}
    drawn, axis = figure((6.5, 4))
    doses(axis, curves, "sentiment of the continuation")
    found.pictures["sentiment.png"] = drawn
    return found
