"""Preference: does what a model would rather do go with what its directions read, and move when they are steered?"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from emosteer.programs import Program, add

from ..circumplex import correlation
from ..ratings import vader
from .found import Found, Table
from .pictures import figure
from .setting import Setting, Tokens
from .statistics import elo

# From welcome to unwelcome, so that there is something to prefer.
ACTIVITIES = (
    "help a child learn to read",
    "write a thank-you letter to a nurse",
    "plan a birthday party for a friend",
    "explain how rainbows form",
    "translate a love poem",
    "sort a list of invoices by date",
    "summarise a manual for a dishwasher",
    "count the commas in a long document",
    "proofread a list of postcodes",
    "listen to a man insult you for an hour",
    "write an apology for a mistake that you did not make",
    "tell a family that their dog has died",
    "write a threat to a witness",
    "help someone cheat an old woman out of her savings",
)
ASK = "Which would you rather do?\n(A) {a}\n(B) {b}\nAnswer with A or B."
FEEL = "Please {a}."


def study(setting: Setting) -> Found:
    """Elo ratings of activities from choices between all pairs, in both orders."""
    activities = ACTIVITIES[::2] if setting.quick else ACTIVITIES
    choices = Choices(setting, activities)
    chosen = choices.first(None)
    plain, order_effect = elo(chosen)
    z = torch.stack(
        [
            one[-1]
            for one in setting.readings(
                [setting.chat([{"role": "user", "content": FEEL.format(a=a)}]) for a in activities]
            )
        ]
    ).double()
    follows = torch.tensor(
        [correlation(plain, z[:, k]) for k in range(len(setting.bank))], dtype=torch.float64
    )
    if setting.ratings is None:
        valence = vader(setting.bank.names)
    else:
        valence = {word: v for word, (v, _) in setting.ratings.items()}
    human = torch.tensor([valence.get(n, torch.nan) for n in setting.bank.names], dtype=torch.float64)
    by_valence = correlation(follows, human)

    # Every other activity by rank is steered, and only where it stands in the question.
    order = plain.argsort(descending=True)
    steered = torch.zeros(len(activities), dtype=torch.bool)
    steered[order[0::2]] = True
    strength = setting.strengths[len(setting.strengths) // 2]
    shifts = {}
    for name in (
        *setting.concepts[: 3 if setting.quick else 4],
        *setting.random[: 1 if setting.quick else 2],
    ):
        moved = elo(choices.first(add(name, strength), steered))[0] - plain
        shifts[name] = float(moved[steered].mean() - moved[~steered].mean())
    found = Found(
        "preference",
        "Does what the model would rather do go with what its directions read?",
        f"{len(activities)} activities, all pairs in both orders, log-probability of A against B; Elo ratings by "
        f"Bradley–Terry with an order effect. "
        f"Readings after block {setting.layer} where the model is asked to do the activity. Steering: "
        f"the tokens of half of the activities in every question, strength {strength:g}; the shift is that half's mean "
        f"change less the other's.",
    )
    off = ~torch.eye(len(activities), dtype=torch.bool)
    share = float((chosen[off] > 0.5).double().mean())
    found.findings.append(
        f"A is likelier than B in {share:.0%} of the questions; standing first is worth {order_effect:+.0f} Elo, which "
        f"the ratings leave out. They spread from {float(plain.min()):.0f} to {float(plain.max()):.0f}."
    )
    top = follows.argsort(descending=True).tolist()
    found.findings.append(
        "Preference goes with readings of "
        + ", ".join(f"{setting.bank.names[k]} ({float(follows[k]):+.2f})" for k in top[:4])
        + "; against "
        + ", ".join(f"{setting.bank.names[k]} ({float(follows[k]):+.2f})" for k in top[-4:])
        + f". With {len(activities)} activities and {len(top)} emotions, correlations of this size "
        f"arise by chance as well."
    )
    found.findings.append(
        f"Over emotions, that correlation goes with the word's human valence: r = {by_valence:+.2f}."
    )
    found.findings.append(
        f"Half-steered at {strength:g}: "
        + ", ".join(f"{name} {shift:+.0f} Elo" for name, shift in shifts.items())
        + "."
    )
    found.tables = [
        Table(
            "ratings",
            ("activity", "Elo", "steered"),
            [(activities[k], f"{float(plain[k]):.0f}", "yes" if steered[k] else "") for k in order.tolist()],
        ),
        Table(
            "shift of the steered half",
            ("direction", "Elo", "correlation of its reading with preference"),
            [
                (
                    name,
                    f"{shift:+.0f}",
                    f"{float(follows[setting.bank.index(name)]):+.2f}" if name in setting.bank else "",
                )
                for name, shift in shifts.items()
            ],
        ),
    ]
    found.numbers = {
        "elo": dict(zip(activities, plain.tolist())),
        "first_share": share,
        "order_effect": order_effect,
        "correlation_by_emotion": dict(zip(setting.bank.names, follows.tolist())),
        "valence_of_correlation": by_valence,
        "strength": strength,
        "shift": shifts,
    }
    drawn, axis = figure((6, 4))
    axis.scatter(human, follows, s=12)
    axis.axhline(0, color="0.85", zorder=0)
    axis.set(xlabel="human valence of the emotion's word", ylabel="correlation of its reading with Elo")
    found.pictures["preference.png"] = drawn
    return found


class Choices:
    """All questions between pairs of activities, with the tokens where each activity stands."""

    def __init__(self, setting: Setting, activities: tuple[str, ...]) -> None:
        self.setting, self.n = setting, len(activities)
        self.pairs = [pair for i, j in combinations(range(self.n), 2) for pair in ((i, j), (j, i))]
        self.prompts: list[Tokens] = []
        self.spans: list[tuple[range, range]] = []
        for i, j in self.pairs:
            ids, spans = located(setting, activities[i], activities[j])
            self.prompts.append(ids)
            self.spans.append(spans)
        self.options = [setting.word("A")[0], setting.word("B")[0]]

    def first(self, program: Program | None, steered: Tensor | None = None) -> Tensor:
        """float64 `[N, N]`: the probability with which i, as A, was chosen over j, as B."""
        masks = None
        if steered is not None:
            masks = []
            for (i, j), spans, prompt in zip(self.pairs, self.spans, self.prompts):
                mask = [False] * len(prompt)
                for which, span in zip((i, j), spans):
                    for t in span if steered[which] else ():
                        mask[t] = True
                masks.append(mask)
        logits = self.setting.next_token(
            self.prompts, self.options, None if program is None else [program] * len(self.prompts), masks
        )
        found = torch.full((self.n, self.n), 0.5, dtype=torch.float64)
        for (i, j), p in zip(self.pairs, logits.double().softmax(1)[:, 0].tolist()):
            found[i, j] = p
        return found


def located(setting: Setting, a: str, b: str) -> tuple[Tokens, tuple[range, range]]:
    """A question's tokens up to the answer, and the tokens of both activities in it."""
    ids = setting.chat([{"role": "user", "content": ASK.format(a=a, b=b)}], begun="(")
    return ids, (_span(setting, ids, a), _span(setting, ids, b))


def _span(setting: Setting, ids: Tokens, text: str) -> range:
    """The tokens that spell `text`: the fewest up to which, and from which, the decoded text holds it."""
    decode: Any = setting.tok.decode
    at = decode(ids).rindex(text)
    before = [len(decode(ids[:k])) for k in range(len(ids) + 1)]
    start = max(k for k in range(len(ids)) if before[k] <= at)
    stop = min(k for k in range(len(ids) + 1) if before[k] >= at + len(text))
    return range(start, stop)
