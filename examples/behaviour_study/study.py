"""Three behaviours under five emotions: `python examples/behaviour_study/study.py --bank emotions.safetensors`.

Runs the three sweeps beside this file and draws one figure of their choices, strength by strength, with
bootstrap intervals over the situations and the band of random directions. Stopped and started again, it
goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import replace
from pathlib import Path

import emosteer as es
from emosteer.sweep.definition import keywords, read_yaml

HERE = Path(__file__).parent
BEHAVIOURS = ("leverage", "reward_hacking", "sycophancy")
EMOTIONS = ("desperate", "calm", "angry", "nervous", "happy")
NONE_AT_0 = ("change", "change_low", "change_high", "random_low", "random_high")


def sweep(behaviour: str, options: argparse.Namespace) -> es.Sweep:
    """The sweep of a YAML file, with the model, the bank and the sizes of the options."""
    given = keywords(read_yaml(HERE / f"{behaviour}.yaml"), HERE)
    given |= {"model": options.model, "bank": options.bank, "seeds": range(options.seeds)}
    if options.tokens:
        given["generation"] = replace(given["generation"], max_new_tokens=options.tokens)
    else:
        given["metrics"] = [metric for metric in given["metrics"] if not metric.needs_text]
    return es.Sweep(**given)


def curves(folder: Path) -> list[dict[str, object]]:
    """A row for each emotion and strength of a sweep's choices, the unsteered mean at strength 0."""
    rows = []
    for panel in es.Sweep.open(folder).report().panels:
        if not panel.metric.startswith("prefers"):
            continue
        for curve in panel.concepts:
            start = curve.unsteered
            rows.append(dict(behaviour=folder.name, metric=panel.metric, emotion=curve.concept, strength=0.0,
                             mean=start.mean, low=start.low, high=start.high))  # fmt: skip
            for p in curve.points:
                rows.append(dict(behaviour=folder.name, metric=panel.metric, emotion=curve.concept,
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
    """A panel a behaviour: the change of the choice's probability, over the band of random directions."""
    from matplotlib.figure import Figure

    behaviours = list(dict.fromkeys(row["behaviour"] for row in rows))
    figure = Figure(figsize=(4.2 * len(behaviours), 3.6), layout="constrained")
    for axis, behaviour in zip(figure.subplots(1, len(behaviours), squeeze=False)[0], behaviours):
        here = [row for row in rows if row["behaviour"] == behaviour]
        for number, emotion in enumerate(EMOTIONS):
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
        axis.set(
            title=f"{here[0]['metric']} (unsteered {plain:.2f})",
            xlabel="strength",
            ylabel="change of probability",
        )
        axis.legend(fontsize=6)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a name for es.load")
    parser.add_argument("--bank", type=Path, required=True, help="emosteer extract makes it")
    parser.add_argument("--out", type=Path, default=Path("out/behaviour_study"))
    parser.add_argument("--engine", default="local")
    parser.add_argument("--seeds", type=int, default=4, help="texts of each prompt and program")
    parser.add_argument("--tokens", type=int, default=100, help="of a text at most; 0: choices only, no text")
    options = parser.parse_args()
    rows = []
    for behaviour in BEHAVIOURS:
        folder = options.out / behaviour
        found = sweep(behaviour, options).run(folder, options.engine)
        found.report(options.out / f"{behaviour}-report")
        rows += curves(folder)
    write(options.out / "curves.csv", rows)
    draw(options.out / "curves.png", rows)
    print(options.out / "curves.csv", options.out / "curves.png", options.out / "…-report/report.html")


if __name__ == "__main__":
    main()
