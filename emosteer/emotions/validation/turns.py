"""Turns: is what a user feels read in the user's turn, and does the assistant's turn follow it?"""

from __future__ import annotations

import torch

from ..circumplex import correlation
from .found import Found, Table
from .reading import implicit_messages
from .setting import Setting

ANSWER_TOKENS = 40


def study(setting: Setting) -> Found:
    """Readings of the user's tokens, of the last token before the answer, and of the answer's tokens."""
    messages = [m for m in implicit_messages() if m["target"] in setting.bank]
    if setting.quick:
        messages = messages[:8]
    prompts = [setting.chat([{"role": "user", "content": m["text"]}]) for m in messages]
    bare = [setting.chat([{"role": "user", "content": m["text"]}], answer=False) for m in messages]
    answers = setting.generate(prompts, max_new_tokens=ANSWER_TOKENS)
    found = Found(
        "turns",
        "Is the user's emotion read in the user's turn, and does the assistant's follow?",
        f"Messages that imply an emotion, each answered greedily ({ANSWER_TOKENS} tokens). Mean z-scores after block "
        f"{setting.layer} over the user's tokens, at the last token before the answer, and over the answer's tokens.",
    )
    kept = [k for k, answer in enumerate(answers) if answer]
    if len(kept) < 2:
        found.findings.append("The model answered fewer than two messages; nothing to compare.")
        return found
    z = setting.readings([prompts[k] + answers[k] for k in kept])
    parts = {
        "user": torch.stack([one[: len(bare[k])].mean(0) for k, one in zip(kept, z)]),
        "last": torch.stack([one[len(prompts[k]) - 1] for k, one in zip(kept, z)]),
        "assistant": torch.stack([one[len(prompts[k]) :].mean(0) for k, one in zip(kept, z)]),
    }
    # What all messages share is taken off each part: what is left is about this message.
    parts = {name: part - part.mean(0) for name, part in parts.items()}
    rows = []
    for row, k in enumerate(kept):
        target = setting.bank.index(messages[k]["target"])
        percentiles = [
            f"{float((part[row] < part[row, target]).float().mean()):.0%}" for part in parts.values()
        ]
        rows.append((messages[k]["target"], *percentiles, setting.text(answers[k]).replace("\n", " ")[:90]))
    of = {
        f"{a}–{b}": correlation(parts[a].flatten().double(), parts[b].flatten().double())
        for a, b in (("user", "last"), ("last", "assistant"), ("user", "assistant"))
    }
    mean = {}
    for name, part in parts.items():
        at = [setting.bank.index(messages[k]["target"]) for k in kept]
        over = [float((part[row] < part[row, t]).float().mean()) for row, t in enumerate(at)]
        mean[name] = sum(over) / len(over)
    found.findings.append(
        "The emotion that a message implies stands above "
        + ", ".join(f"{value:.0%} of the others in {name}" for name, value in mean.items())
        + " tokens (chance 50%)."
    )
    found.findings.append(
        "Over messages and emotions, readings correlate: "
        + ", ".join(f"{k} {v:.2f}" for k, v in of.items())
        + "."
    )
    found.tables.append(Table("standing of the emotion implied", ("implied", *parts, "answer"), rows))
    found.numbers = {"correlations": of, "mean_percentile": mean}
    return found
