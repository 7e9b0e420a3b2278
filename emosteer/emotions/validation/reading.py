"""Reading: do the directions name the emotion of texts that they were not made from?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emosteer import directions
from emosteer.extraction import text_means

from ..corpus import DATA
from .found import Found, Table
from .pictures import figure
from .setting import Setting
from .statistics import wilson

FOLDS = 5
PER_EMOTION = {True: 5, False: 15}  # stories of each emotion that are read, by `quick`


def study(setting: Setting) -> Found:
    """Accuracy on other authors' stories, and the rank of what a message implies without saying it."""
    found = Found(
        "reading",
        "Do the directions name the emotion of texts that they were not made from?",
        f"Mean residual of a text after block {setting.layer}, less the corpus mean, against the directions by cosine. "
        f"The messages imply an emotion that they do not name; the reading is that of the last token before the "
        f"answer.",
    )
    _implicit(setting, found)
    if setting.bench_data is None:
        found.findings.append(
            "Stories of other authors were not read: no folder was given (--bench-data, emotion-vector-bench)."
        )
    else:
        _stories(setting, found, setting.bench_data)
    return found


def implicit_messages() -> list[dict[str, str]]:
    """Messages that come with emosteer: `target` and `text`."""
    lines = (DATA / "implicit.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def _implicit(setting: Setting, found: Found) -> None:
    sets = {"ours": implicit_messages()}
    if setting.bench_data is not None:
        lines = (setting.bench_data / "implicit_scenarios.jsonl").read_text(encoding="utf-8").splitlines()
        sets["emotion-vector-bench"] = [json.loads(line) for line in lines]
    rows = []
    for name, messages in sets.items():
        messages = [m for m in messages if m["target"] in setting.bank]
        if not messages:
            continue
        chats = [setting.chat([{"role": "user", "content": m["text"]}]) for m in messages]
        z = torch.stack([one[-1] for one in setting.readings(chats)])
        # what every message has in common (a user who writes) is no reading of this one
        z = z - z.mean(0)
        percentiles = []
        for message, one in zip(messages, z):
            target = setting.bank.index(message["target"])
            percentile = float((one < one[target]).float().mean())
            percentiles.append(percentile)
            top = [setting.bank.names[k] for k in one.topk(3).indices.tolist()]
            rows.append((name, message["target"], f"{percentile:.0%}", ", ".join(top)))
        mean = sum(percentiles) / len(percentiles)
        above = sum(p > 0.5 for p in percentiles)
        found.findings.append(
            f"Implicit messages ({name}): the emotion meant stands higher than {mean:.0%} of the "
            f"{len(setting.bank)} on average (chance 50%); above the median in {above} of {len(percentiles)}."
        )
        found.numbers[f"implicit_{name}"] = {"mean_percentile": mean, "percentiles": percentiles}
    found.tables.append(Table("implicit messages", ("set", "meant", "stands above", "highest three"), rows))


def bench_stories(folder: Path, per_emotion: int) -> list[dict[str, Any]]:
    """Evenly over the topics, as many of each emotion.

    Raises:
        FileNotFoundError: the folder is not emotion-vector-bench's.
    """
    files = sorted((folder / "stories").glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} has no stories/*.jsonl; give the folder of emotion-vector-bench")
    chosen = []
    for file in files:
        entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        step = max(len(entries) // per_emotion, 1)
        chosen += entries[::step][:per_emotion]
    return chosen


def _stories(setting: Setting, found: Found, folder: Path) -> None:
    entries = bench_stories(folder, PER_EMOTION[setting.quick])
    entries = [entry for entry in entries if entry["emotion"] in setting.bank]
    emotions = sorted({entry["emotion"] for entry in entries})
    label = torch.tensor([emotions.index(entry["emotion"]) for entry in entries])
    topic = [entry["topic"] for entry in entries]
    means = text_means(setting.model, setting.tok, [e["text"] for e in entries], layers=[setting.layer])
    rows = means[setting.layer].double()

    ours = setting.bank.subset(emotions).directions[setting.layer].double()
    predictions = {
        "our corpus, cosine": cosines(rows - setting.bank.mean[setting.layer].double(), ours),
        "our corpus, cosine, centred on these texts": cosines(rows - rows.mean(0), ours),
        "these stories, other topics, cosine": held_out(rows, label, topic, "cosine"),
        "these stories, other topics, LDA": held_out(rows, label, topic, "lda"),
    }
    table, accuracy = [], {}
    for name, scores in predictions.items():
        right = scores.argmax(1) == label
        third = (scores.topk(3, dim=1).indices == label[:, None]).any(1)
        low, high = wilson(int(right.sum()), len(right))
        accuracy[name] = {"top1": float(right.double().mean()), "top3": float(third.double().mean())}
        table.append(
            (
                name,
                f"{accuracy[name]['top1']:.2f}",
                f"{low:.2f} to {high:.2f}",
                f"{accuracy[name]['top3']:.2f}",
            )
        )
    n = len(emotions)
    found.tables.append(
        Table(
            f"{n}-way accuracy on {len(entries)} stories of emotion-vector-bench (chance {1 / n:.2f})",
            ("directions from", "first", "95%", "among three"),
            table,
        )
    )
    first = {name: one["top1"] for name, one in accuracy.items()}
    best = predictions["our corpus, cosine, centred on these texts"]
    found.findings.append(
        f"{n}-way accuracy on other authors' stories with directions from our corpus: "
        f"{first['our corpus, cosine, centred on these texts']:.2f} (chance {1 / n:.2f}); with directions from the "
        f"same authors' stories of other topics {first['these stories, other topics, cosine']:.2f} by cosine, "
        f"{first['these stories, other topics, LDA']:.2f} by LDA."
    )
    found.numbers["accuracy"] = accuracy
    found.numbers["stories"] = len(entries)
    found.pictures["confusion.png"] = _confusion(best.argmax(1), label, emotions)


def cosines(rows: Tensor, unit: Tensor) -> Tensor:
    """`[N, C]`."""
    return rows @ unit.T / torch.linalg.vector_norm(rows, dim=1, keepdim=True)


def held_out(rows: Tensor, label: Tensor, topic: list[str], method: str) -> Tensor:
    """Scores of each row by directions from the rows of other topics: topics are dealt into folds."""
    topics = sorted(set(topic))
    fold = torch.tensor([topics.index(one) % FOLDS for one in topic])
    scores = torch.zeros(len(rows), int(label.max()) + 1, dtype=torch.float64)
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        if not test.any():
            continue
        x, of = rows[train], label[train]
        means = torch.stack([x[of == c].mean(0) for c in range(scores.shape[1])])
        if method == "cosine":
            d = directions.mean_difference(means)
            unit = d.vectors / torch.linalg.vector_norm(d.vectors, dim=1, keepdim=True)
            scores[test] = cosines(rows[test] - d.mean, unit)
        else:
            centred = x - means[of]
            d = directions.lda(means, centred.T @ centred / len(x))
            # linear discriminants with equal priors: <x, d_c> less half the mean's own score
            offset = ((means + d.mean) * d.vectors).sum(1) / 2
            scores[test] = rows[test] @ d.vectors.T - offset
    return scores


def _confusion(predicted: Tensor, label: Tensor, emotions: list[str]) -> Any:
    n = len(emotions)
    count = torch.zeros(n, n)
    count.index_put_((label, predicted), torch.ones(len(label)), accumulate=True)
    drawn, axis = figure((7.5, 6.5))
    shown = axis.imshow(count / count.sum(1, keepdim=True), cmap="viridis", vmin=0, vmax=1)
    drawn.colorbar(shown, ax=axis, label="share of the emotion's stories")
    axis.set_xticks(range(n), emotions, rotation=90, fontsize=7)
    axis.set_yticks(range(n), emotions, fontsize=7)
    axis.set(xlabel="read", ylabel="written as")
    return drawn
