"""What the benchmarks share: the machine in words, a ratio with its spread, and the CSV file."""

from __future__ import annotations

import csv
import platform
import shlex
import statistics
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("emosteer", "torch", "transformers", "numpy")


@dataclass
class Result:
    """Times in seconds of one side of a comparison and of the other, run in turn."""

    case: str
    side: str
    against: str
    times: list[float]
    others: list[float]
    calls: int | None = None  # of one pass's compiled code, where it was counted

    @property
    def ratios(self) -> list[float]:
        """Round by round, so that a machine that slows down slows both."""
        return [a / b for a, b in zip(self.times, self.others)]

    def row(self) -> dict[str, str]:
        quartiles = statistics.quantiles(self.ratios, n=4) if len(self.ratios) > 1 else [float("nan")] * 3
        return {
            "case": self.case,
            "side": self.side,
            "against": self.against,
            "median_us": f"{statistics.median(self.times) * 1e6:.1f}",
            "min_us": f"{min(self.times) * 1e6:.1f}",
            "against_median_us": f"{statistics.median(self.others) * 1e6:.1f}" if self.others else "",
            "ratio_median": f"{statistics.median(self.ratios):.3f}" if self.others else "",
            "ratio_q1": f"{quartiles[0]:.3f}" if self.others else "",
            "ratio_q3": f"{quartiles[2]:.3f}" if self.others else "",
            "rounds": str(len(self.times)),
            **({} if self.calls is None else {"calls": str(self.calls)}),
        }


def machine(packages: tuple[str, ...] = PACKAGES) -> str:
    """The processor and the versions, in one line."""
    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    card = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return (
        f"{card}{cpu}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"{versions(packages)}"
    )


def versions(packages: tuple[str, ...] = PACKAGES) -> str:
    found = []
    for name in packages:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def save(name: str, results: list[Result], packages: tuple[str, ...] = PACKAGES) -> Path:
    """Write a CSV whose first lines say where, when and how it was made."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    command = " ".join(["python", *(shlex.quote(a) for a in (_relative(sys.argv[0]), *sys.argv[1:]))])
    with path.open("w", newline="") as file:
        file.write(f"# {command}\n# {date.today()}: {machine(packages)}\n")
        rows = [result.row() for result in results]
        writer = csv.DictWriter(
            file, list(dict.fromkeys(k for row in rows for k in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    return path


def plot_ratios(path: Path, title: str) -> Path:
    """Bars of the ratios in a CSV, with their quartiles; drawn beside it."""
    from matplotlib.figure import Figure

    with path.open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    rows = [row for row in rows if row["ratio_median"] and row["side"] != row["against"]]
    cases, sides = (list(dict.fromkeys(row[key] for row in rows)) for key in ("case", "side"))
    figure = Figure(figsize=(9, 4), layout="constrained")
    axis = figure.subplots()
    width = 0.8 / len(sides)
    for j, side in enumerate(sides):
        here = {row["case"]: row for row in rows if row["side"] == side}
        at = [i + (j - (len(sides) - 1) / 2) * width for i, case in enumerate(cases) if case in here]
        found = [here[case] for case in cases if case in here]
        middle = [float(row["ratio_median"]) for row in found]
        low = [max(m - float(row["ratio_q1"]), 0) for m, row in zip(middle, found)]
        high = [max(float(row["ratio_q3"]) - m, 0) for m, row in zip(middle, found)]
        axis.bar(at, middle, width * 0.92, yerr=(low, high), capsize=2, label=side)
    axis.axhline(1.0, color="0.3", linewidth=0.8)
    axis.set_xticks(range(len(cases)), cases)
    lowest = min(float(row["ratio_q1"]) for row in rows)
    axis.set_ylim(bottom=max(0.0, min(0.9, lowest - 0.05)))
    axis.set(title=title, ylabel="time ÷ unsteered (median, quartiles)")
    axis.legend(ncols=len(sides), fontsize=8)
    picture = path.with_suffix(".png")
    figure.savefig(picture, dpi=150)
    return picture


def summary(results: list[Result]) -> str:
    """The rows as an aligned table."""
    rows = [result.row() for result in results]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [names, *([row.get(name, "") for name in names] for row in rows)]
    width = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, width)) for line in table)


def _relative(path: str) -> str:
    try:
        return str(Path(path).resolve().relative_to(Path(__file__).parent.parent))
    except ValueError:
        return Path(path).name


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
