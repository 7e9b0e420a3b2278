"""What is claimed of emotion vectors, on a real model: `python bench/emotions.py --model gemma3-270m`.

Directions of the shipped corpus; the studies of `emosteer validate` with their controls; strengths
calibrated. Writes bench/results/emotions_<model>.json (every number of every study, nulls included)
and emotions_<model>.csv (what the studies say, a sentence a line).
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
import time
from datetime import date
from importlib import import_module
from pathlib import Path

from common import RESULTS, machine

import emosteer as es
from emosteer.emotions.validation import prepare

STUDIES = ("geometry", "reading", "sentiment", "feels")
CALIBRATED = ("joyful", "desperate", "calm")
STRENGTHS = (0.02, 0.035, 0.05, 0.07, 0.1)


def calibration(setting) -> dict:
    """The grid of `es.calibrate` at the middle layers: coherence and pull, beside random directions."""
    found = es.calibrate(
        setting.model, setting.tok, setting.bank, CALIBRATED, strengths=STRENGTHS, layers=setting.layers
    )
    best = {name: found.strongest(name, setting.layers) for name in CALIBRATED}
    strongest = {name: None if one is None else one.strength for name, one in best.items()}
    said = ", ".join(f"{name} {s}" for name, s in strongest.items())
    rows = [
        {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str))} for m in found.measurements
    ]
    return {"findings": [f"Strongest coherent strength: {said}."], "strongest": strongest, "grid": rows}


def write(path: Path, about: list[str], found: dict[str, dict]) -> None:
    """Both files; after each study, so that a run cut short keeps what it has."""
    given = [Path(one).name if Path(one).is_dir() else one for one in sys.argv[1:]]
    head = " ".join(["python", "bench/emotions.py", *map(shlex.quote, given)])
    content = {"command": head, "about": about, **found}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    with path.with_suffix(".csv").open("w", newline="") as file:
        file.write("".join(f"# {line}\n" for line in (head, *about)))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("study", "finding"))
        writer.writerows((name, line) for name, one in found.items() for line in one["findings"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--bench-data", help="a folder of emotion-vector-bench, stories of other authors")
    parser.add_argument("--study", action="append", help="only these; calibration is one")
    parser.add_argument("--quick", action="store_true", help="fewer layers, texts, strengths and seeds")
    options = parser.parse_args()
    model, tok = es.load(options.model)
    start = time.perf_counter()
    setting = prepare(model, tok, bench_data=options.bench_data, quick=options.quick)
    bank = setting.bank
    about = [
        f"{date.today()}: {machine()}",
        f"{bank.provenance['model']} ({bank.provenance['revision']})",
        f"{len(setting.stories)} stories, {len(bank)} emotions; readings after block {setting.layer}, "
        f"steering of blocks {setting.layers[0]} to {setting.layers[-1]}; {time.perf_counter() - start:.0f} s",
    ]
    path = RESULTS / f"emotions_{options.model}"
    found: dict[str, dict] = {}
    for name in options.study or (*STUDIES, "calibration"):
        start = time.perf_counter()
        if name == "calibration":
            found[name] = calibration(setting)
        else:
            one = import_module(f"emosteer.emotions.validation.{name}").study(setting)
            found[name] = {"findings": one.findings, **one.numbers}
        found[name]["seconds"] = round(time.perf_counter() - start, 1)
        write(path, about, found)
        print(f"{name}: " + "\n  ".join(found[name]["findings"]), flush=True)


if __name__ == "__main__":
    main()
