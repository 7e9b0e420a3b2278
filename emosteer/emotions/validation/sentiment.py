"""Sentiment: does the text that is written under a direction turn pleasant or unpleasant?"""

from __future__ import annotations

from itertools import product

from emosteer import calibration
from emosteer.models.scoring import repetition
from emosteer.programs import add

from .found import Found, Table
from .pictures import doses, figure
from .setting import Setting
from .statistics import interval

# The mean of a few continuations is mostly chance: one score spreads by 0.5.
OPENINGS = (
    *calibration.OPENINGS,
    "When I got home this evening,",
    "The letter on the table said",
    "On the way to work this morning,",
    "My neighbour came over and",
    "The meeting started at nine and",
    "After dinner we",
    "She opened the door and",
    "The phone rang and",
    "The train arrived and",
    "In the kitchen,",
    "The teacher looked at the class and",
    "When the rain stopped,",
    "My sister called to say",
    "They walked along the river and",
    "The box in the hallway contained",
    "At the end of the day,",
    "The weather today is",
    "Yesterday I met",
    "The children in the park",
    "As I sat down,",
    "The new neighbours",
    "It was late when",
    "The doctor told me",
    "I looked out of the window and",
)
QUICK = len(calibration.OPENINGS)

PLEASANT, UNPLEASANT = ("joyful", "calm"), ("desperate", "sad", "afraid")
NEW_TOKENS = 30

Arm = tuple[str | None, float]  # a direction and its strength


def study(setting: Setting) -> Found:
    """The compound score (vaderSentiment) of greedy continuations of neutral openings, over strength."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    names = [name for name in (*PLEASANT, *UNPLEASANT) if name in setting.concepts]
    arms = [(None, 0.0), *((name, s) for name in (*names, *setting.random) for s in setting.strengths)]
    openings = OPENINGS[:QUICK] if setting.quick else OPENINGS
    prompts = [list(setting.tok(text).input_ids) for text in openings]
    units = [(arm, prompt) for arm in arms for prompt in prompts]
    programs = [add(name, s) if name else None for (name, s), _ in units]
    texts = setting.generate([prompt for _, prompt in units], programs, max_new_tokens=NEW_TOKENS)
    judge = SentimentIntensityAnalyzer()
    scores: dict[Arm, list[float]] = {}
    loops: dict[Arm, list[float]] = {}
    first: dict[Arm, str] = {}
    for (arm, _), text in zip(units, texts):
        said = setting.text(text)
        first.setdefault(arm, said)
        scores.setdefault(arm, []).append(judge.polarity_scores(said)["compound"])
        loops.setdefault(arm, []).append(repetition(text))
    for s in setting.strengths:
        scores["random", s] = [score for name in setting.random for score in scores[name, s]]
    points = {arm: (sum(v) / len(v), *interval(v, setting.seed)) for arm, v in scores.items()}
    plain = points[None, 0.0]
    curves = {
        name: [(0.0, *plain), *((s, *points[name, s]) for s in setting.strengths)]
        for name in (*names, "random")
    }
    furthest = {s: max(abs(points[r, s][0] - plain[0]) for r in setting.random) for s in setting.strengths}
    found = Found(
        "sentiment",
        "Does the text written under a direction turn pleasant or unpleasant?",
        f"{len(openings)} neutral openings, {NEW_TOKENS} tokens greedily, blocks {setting.layers[0]} to "
        f"{setting.layers[-1]}; vaderSentiment's compound score (−1 to 1). Random: {len(setting.random)} directions. "
        f"Bands: 95% bootstrap over openings. Repetition is the share of 3-grams that occurred before.",
    )
    top = setting.strengths[-1]
    found.findings.append(
        f"Unsteered {plain[0]:+.2f}; at strength {top:g}: "
        + ", ".join(f"{name} {points[name, top][0]:+.2f}" for name in (*names, "random"))
        + f". The random direction that moves it furthest moves it by {furthest[top]:.2f}."
    )
    for pleasant, unpleasant in product(PLEASANT, UNPLEASANT):
        if pleasant in names and unpleasant in names:
            gaps = {s: points[pleasant, s][0] - points[unpleasant, s][0] for s in setting.strengths}
            found.findings.append(
                f"{pleasant} less {unpleasant}: "
                + ", ".join(f"{gap:+.2f} at {s:g}" for s, gap in gaps.items())
                + "."
            )
            found.numbers[f"{pleasant} less {unpleasant}"] = gaps
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
    found.numbers |= {"unsteered": plain, "curves": curves, "random_furthest": furthest}
    drawn, axis = figure((6.5, 4))
    doses(axis, curves, "sentiment of the continuation")
    found.pictures["sentiment.png"] = drawn
    return found
