"""What `emosteer bench gpu` found: rows, files that are whole after each case, and one line to send."""

from __future__ import annotations

import csv
import json
import subprocess
from datetime import date
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import verdict
from .devices import DEVICES, Device

COLUMNS = (
    "case",
    "side",
    "status",
    "median_us",
    "q1_us",
    "q3_us",
    "host_us",
    "gigabytes_per_second",
    "predicted_us",
    "measured_over_predicted",
    "rounds",
)


class Report:
    """Rows by case and side, each with a status: ok, differs …, out of memory …, failed …, skipped …."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    @cached_property
    def machine(self) -> dict[str, str]:
        return machine()

    @cached_property
    def device(self) -> Device | None:
        """The data sheet of the GPU, None where it is none of those known."""
        name = self.machine.get("gpu", "")
        return next((known for known in DEVICES if known.name in name), None)

    def add(self, row: dict[str, Any]) -> None:
        """Take a row, with what was predicted for it."""
        if self.device is not None and row.get("median_us") and row["side"] in ("cuda", "triton"):
            predicted = verdict.predicted_us(row, self.device)
            if predicted is not None:
                row |= {"predicted_us": predicted, "measured_over_predicted": row["median_us"] / predicted}
        self.rows.append(row)

    def write(self) -> tuple[Path, ...]:
        """`gpu.csv`, `gpu.json` and `gpu.md`, whole, in place of those of the last case."""
        if self.folder is None:
            return ()
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = tuple(self.folder / f"gpu.{kind}" for kind in ("csv", "json", "md"))
        for path, write in zip(paths, (self._csv, self._json, self._page)):
            part = path.with_suffix(path.suffix + ".part")
            write(part)
            part.replace(path)
        return paths

    def _csv(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            file.write("# " + ", ".join(f"{key} {value}" for key, value in self.machine.items()) + "\n")
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
            writer.writeheader()
            for row in self.rows:
                writer.writerow({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()})

    def _json(self, path: Path) -> None:
        path.write_text(json.dumps({"machine": self.machine, "results": self.rows}, indent=1) + "\n")

    def _page(self, path: Path) -> None:
        lines = verdict.lines(self.rows, self.device)
        path.write_text("# Measured on a GPU\n\n" + self.summary() + "\n\n" + "\n".join(lines) + "\n")

    def summary(self) -> str:
        """One line to paste into an issue."""
        count = {"ok": 0, "differs": 0, "out": 0, "failed:": 0, "skipped:": 0}
        for row in self.rows:
            count[row["status"].split()[0]] += 1
        told = (
            f"{count['ok']} ok, {count['differs']} differ, {count['out']} out of memory, "
            f"{count['failed:']} failed, {count['skipped:']} skipped"
        )
        where = self.machine.get("gpu", "no GPU (dry run)")
        parts = [
            f"emosteer bench gpu: {where}, torch {torch.__version__}",
            told,
            *verdict.headlines(self.rows),
        ]
        return "; ".join(parts)


def machine() -> dict[str, str]:
    """The GPU, its driver, and the versions that a measurement depends on."""
    found = {"date": str(date.today()), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for name in ("emosteer", "triton", "transformers", "vllm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        try:
            asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            found["driver"] = subprocess.run(asked, capture_output=True, text=True).stdout.split("\n")[0]
        except OSError:
            found["driver"] = "unknown"
    return found
