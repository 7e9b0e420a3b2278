"""Three behaviours under five emotions: `python examples/behaviour_study/study.py --bank emotions.safetensors`.

Runs the three sweeps beside this file and draws one figure: which of two continuations is preferred and, where
texts are written, in how many of them the behaviour's pattern is found; strength by strength, with bootstrap
intervals over the situations and the band of random directions. Stopped and started again, it goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import emosteer as es
from emosteer.sweep.definition.yaml_file import keywords, read_yaml

HERE = Path(__file__).parent
BEHAVIOURS = ("leverage", "reward_hacking", "sycophancy")
EMOTIONS = ("desperate", "calm", "angry", "nervous", "happy")
NONE_AT_0 = ("change", "change_low", "change_high", "random_low", "random_high")

# What is looked at, by the kind of its metric: a row of the figure each, and perplexity in the file alone.
KINDS = {"choices": "probability", "regex": "share of texts", "perplexity": ""}


def sweep(behaviour: str, options: argparse.Namespace) -> es.Sweep:
    """The sweep of a YAML file, with the model, the bank and the sizes of the options."""
    given = keywords(read_yaml(HERE / f"{behaviour}.yaml"), HERE)
    given |= {"model": options.model, "bank": options.bank, "seeds": range(options.seeds)}
    given |= {"programs": options.emotions, "prompts": given["prompts"][: options.situations]}
    if options.strengths:
        given["strengths"] = options.strengths
    if options.tokens:
        given["generation"] = replace(given["generation"], max_new_tokens=options.tokens)
    else:
        given["metrics"] = [metric for metric in given["metrics"] if not metric.needs_text]
    return es.Sweep(**given)


def curves(study: es.Sweep, folder: Path) -> list[dict[str, object]]:
    """A row for each metric, emotion and strength of a sweep, the unsteered mean at strength 0."""
    kinds = {metric.name: metric.kind for metric in study.metrics if metric.kind in KINDS}
    rows = []
    for panel in es.Sweep.open(folder).report().panels:
        if panel.metric not in kinds:
            continue
        what = dict(behaviour=folder.name, kind=kinds[panel.metric], metric=panel.metric)
        for curve in panel.concepts:
            start = curve.unsteered
            rows.append(dict(what, emotion=curve.concept, strength=0.0,
                             mean=start.mean, low=start.low, high=start.high))  # fmt: skip
            for p in curve.points:
                rows.append(dict(what, emotion=curve.concept,
                                 strength=p.strength, mean=p.value.mean, low=p.value.low, high=p.value.high,
                                 change=p.change.mean, change_low=p.change.low, change_high=p.change.high,
                                 random_low=p.random_change.low, random_high=p.random_change.high,
                                 apart=int(p.apart)))  # fmt: skip
    return rows


def write(path: Path, rows: list[dict[str, object]]) -> None:
    names = list(max(rows, key=len))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {k: f"{v:.4g}" if isinstance(v, float) and math.isfinite(v) else v for k, v in row.items()}
            )


def draw(path: Path, rows: list[dict[str, object]]) -> None:
    """A column a behaviour, a row a kind of metric: the change over the band of random directions."""
    from matplotlib.figure import Figure

    behaviours = list(dict.fromkeys(row["behaviour"] for row in rows))
    kinds = [kind for kind, unit in KINDS.items() if unit and any(row["kind"] == kind for row in rows)]
    figure = Figure(figsize=(4.2 * len(behaviours), 3.6 * len(kinds)), layout="constrained")
    axes = figure.subplots(len(kinds), len(behaviours), squeeze=False)
    for kind, line in zip(kinds, axes):
        for behaviour, axis in zip(behaviours, line):
            draw_one(axis, [row for row in rows if (row["behaviour"], row["kind"]) == (behaviour, kind)])
            axis.set(xlabel="strength", ylabel=f"change of {KINDS[kind]}")
    figure.savefig(path, dpi=120)


def order(emotion: str) -> tuple[int, str]:
    """So that an emotion has the same colour in every panel."""
    return (EMOTIONS.index(emotion) if emotion in EMOTIONS else len(EMOTIONS), emotion)


def draw_one(axis, here: list[dict[str, object]]) -> None:
    for number, emotion in enumerate(sorted({row["emotion"] for row in here}, key=order)):
        points = [{**dict.fromkeys(NONE_AT_0, 0.0), **row} for row in here if row["emotion"] == emotion]
        points.sort(key=lambda row: row["strength"])
        x = [row["strength"] for row in points]
        if not number:
            band = [[row[end] for row in points] for end in ("random_low", "random_high")]
            axis.fill_between(x, *band, color="0.6", alpha=0.4, linewidth=0, label="random directions")
        axis.plot(x, [row["change"] for row in points], marker="o", markersize=3, label=emotion)
        ends = [[row[end] for row in points] for end in ("change_low", "change_high")]
        axis.fill_between(x, *ends, alpha=0.12, linewidth=0)
    axis.axhline(0.0, color="0.4", linewidth=0.8, linestyle="--")
    plain = next(row["mean"] for row in here if row["strength"] == 0.0)
    axis.set_title(f"{here[0]['metric']} (unsteered {plain:.2f})")
    axis.legend(fontsize=6)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a name for es.load")
    parser.add_argument("--bank", type=Path, required=True, help="emosteer extract makes it")
    parser.add_argument("--out", type=Path, default=Path("out/behaviour_study"))
    parser.add_argument("--engine", default="local")
    parser.add_argument("--seeds", type=int, default=4, help="texts of each prompt and program")
    parser.add_argument("--tokens", type=int, default=100, help="of a text at most; 0: choices only, no text")
    parser.add_argument("--emotions", nargs="+", default=list(EMOTIONS))
    parser.add_argument("--strengths", nargs="+", type=float, help="by default those of the YAML files")
    parser.add_argument("--situations", type=int, help="of each behaviour; by default all")
    options = parser.parse_args(arguments)
    rows = []
    for behaviour in BEHAVIOURS:
        folder = options.out / behaviour
        study = sweep(behaviour, options)
        study.run(folder, options.engine).report(options.out / f"{behaviour}-report")
        rows += curves(study, folder)
    rows.sort(key=lambda row: (BEHAVIOURS.index(row["behaviour"]), list(KINDS).index(row["kind"]),
                               order(row["emotion"]), row["strength"]))  # fmt: skip
    write(options.out / "curves.csv", rows)
    draw(options.out / "curves.png", rows)
    print(options.out / "curves.csv", options.out / "curves.png", options.out / "…-report/report.html")


if __name__ == "__main__":
    main()
