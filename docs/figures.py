"""The benchmarks' tables and pictures, from the CSVs under bench/results: `python docs/figures.py out/figures`.

The site calls this when it is built (docs/hooks.py), so what it shows is what is committed. Whatever a file's first
line calls predicted may only stand where the page says so.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "bench" / "results"
PREDICTED = "predicted"
# Cases of a picture beside each other.
MOST_ACROSS = 4

Line = dict[str, str]


@dataclass(frozen=True)
class Measurements:
    """A CSV: what its first lines say, and its lines."""

    name: str
    said: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def predicted(self) -> bool:
        return any(PREDICTED in said for said in self.said)

    @property
    def caption(self) -> str:
        """The command, the machine and the versions, as Markdown."""
        return f"`{self.said[0]}`  \n{' · '.join(self.said[1:])}" if self.said else ""


def read(name: str) -> Measurements:
    """`bench/results/NAME.csv`.

    Raises:
        FileNotFoundError, ValueError: there is none, or it does not say what made it.
    """
    text = (RESULTS / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    said = [line.removeprefix("#").strip() for line in text if line.startswith("#")]
    if not said:
        raise ValueError(f"bench/results/{name}.csv does not say in a first line, after #, what made it")
    lines = csv.DictReader(line for line in text if not line.startswith("#"))
    return Measurements(name, tuple(said), tuple(lines))


def table(found: Measurements, columns: Sequence[str] = ()) -> str:
    """A Markdown table of a file, with its caption above."""
    columns = columns or list(found.lines[0])
    head = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    body = [f"| {' | '.join(line[column] for column in columns)} |" for line in found.lines]
    return "\n".join([found.caption, "", *head, *body])


def ratios(found: Measurements, against: str | None = None) -> str:
    """A Markdown table of ratios, median and quartiles, a line a case and pair of sides."""
    body = []
    for line in found.lines:
        if _number(line["ratio_median"]) is None or line["side"] == line["against"]:
            continue
        if against is None or line["against"] == against:
            low, high = _number(line["ratio_q1"]), _number(line["ratio_q3"])
            spread = f"{low:.2f} to {high:.2f}" if low is not None and high is not None else ""
            sides = f"{line['side']} ÷ {line['against']}"
            body.append(f"| {line['case']} | {sides} | {float(line['ratio_median']):.2f} | {spread} |")
    if not body:
        raise ValueError(f"bench/results/{found.name}.csv has no ratio against {against!r}")
    head = ["| | | median | quartiles |", "| --- | --- | --- | --- |"]
    return "\n".join([found.caption, "", *head, *body])


def bars(found: Measurements, against: str = "unsteered") -> bytes:
    """An SVG: for each case a bar a side, its ratio to `against` with quartiles; a line at 1."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    cases: dict[str, list[Line]] = {}
    for line in found.lines:
        if line["against"] == against and line["side"] != against:
            cases.setdefault(line["case"], []).append(line)
    if not cases:
        raise ValueError(f"bench/results/{found.name}.csv has nothing measured against {against!r}")
    most = max(len(lines) for lines in cases.values())
    across = min(len(cases), MOST_ACROSS)
    down = math.ceil(len(cases) / across)
    settings = {"svg.hashsalt": found.name, "svg.fonttype": "path", "font.size": 8}
    with rc_context(settings):  # the same file from the same numbers, and no font is asked for
        size = 3.1 * across + 1.6, (0.24 * most + 0.5) * down + 0.6
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(down, across, sharex=True, squeeze=False).flat
        for axis in axes[len(cases) :]:
            axis.remove()
        to_the_left: list[str] | None = None
        for axis, (case, lines) in zip(axes, cases.items()):
            for k, line in enumerate(lines):
                _bar(axis, k, line)
            sides = [line["side"] for line in lines]
            if axis.get_subplotspec().is_first_col():
                to_the_left = None
            axis.set_yticks(range(len(lines)), [] if sides == to_the_left else sides)
            to_the_left = sides
            axis.set(title=case, ylim=(len(lines) - 0.4, -0.6))
            axis.axvline(1, color="0.2", linewidth=0.8)
            axis.spines[["top", "right"]].set_visible(False)
        ends = [
            _number(line[end])
            for lines in cases.values()
            for line in lines
            for end in ("ratio_q1", "ratio_q3")
        ]
        known = [end for end in ends if end is not None]
        axes[0].set_xlim(min([0.85, *known]) - 0.02, max([1.1, *known]) + 0.02)
        figure.supxlabel(f"time ÷ {against} (median, quartiles)")
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _bar(axis: Any, k: int, line: Line) -> None:
    value = float(line["ratio_median"])
    ours = line["side"].startswith(("emosteer", "es.")) or line["side"].endswith("accelerated")
    axis.barh(k, value - 1, left=1, height=0.62, color="#1f6f8b" if ours else "#c9a26b")
    low, high = _number(line["ratio_q1"]), _number(line["ratio_q3"])
    if low is not None and high is not None:
        axis.plot([low, high], [k, k], color="0.25", linewidth=1)


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None


# Picture → the CSV that it is drawn from.
PICTURES = {
    "headline_float32.svg": "headline_float32",
    "steering_float32.svg": "steering_float32",
    "steering_bfloat16.svg": "steering_bfloat16",
    "steering_peers_float32.svg": "steering_peers_float32",
    "peers_steering_float32.svg": "peers_steering_float32",
    "compiled_float32.svg": "compiled_float32",
}


def main() -> None:
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for picture, name in PICTURES.items():
        (target / picture).write_bytes(bars(read(name)))
        print(target / picture)


if __name__ == "__main__":
    main()
