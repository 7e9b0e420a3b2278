"""What is claimed of emotion vectors, on a real model: `python bench/emotions.py --model gemma3-270m`.

Directions of the shipped corpus; the studies of `emosteer validate` with their controls; strengths
calibrated. Writes bench/results/emotions_<model>.json (every number of every study, nulls included, each
study with the command and the machine that made it) and emotions_<model>.csv (what the studies say, a
sentence a line). Studies that are not asked for stay as an earlier run left them.

With `--keep FOLDER` the pass over the stories may be interrupted and is made once: its moments are kept there.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine
from safetensors import safe_open
from safetensors.torch import save_file

import emosteer as es
from emosteer.emotions.validation import prepare
from emosteer.extraction import Collected
from emosteer.extraction.state import LayerMoments

STUDIES = ("geometry", "reading", "sentiment", "feels")
CALIBRATED = ("joyful", "desperate", "calm")
STRENGTHS = (0.02, 0.035, 0.05, 0.07, 0.1)


def moments(model: Any, tok: Any, keep: Path) -> Collected:
    """The pass over the stories, from `keep` where it is there."""
    path = keep / "moments.safetensors"
    if path.exists():
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()["note"])
            names = tuple(note["names"])
            found = {}
            for layer in note["layers"]:
                state = {k: file.get_tensor(f"{layer}.{k}") for k in note["tensors"]}
                found[layer] = LayerMoments(len(names), note["dim"], False, torch.device("cpu"))
                found[layer].load(state)
        return Collected(names, found, note["provenance"])
    collected = es.collect(
        model,
        tok,
        ((str(i), story.text) for i, story in enumerate(es.emotions.corpus())),
        neutral=es.emotions.neutral(),
        within=False,
        progress=False,
        checkpoint=keep / "checkpoint.safetensors",
    )
    states = {layer: one.state() for layer, one in collected.moments.items()}
    note = {
        "names": collected.names,
        "layers": collected.layers,
        "tensors": list(next(iter(states.values()))),
        "dim": next(iter(collected.moments.values())).stories.dim,
        "provenance": dict(collected.provenance),
    }
    tensors = {f"{layer}.{k}": t.contiguous() for layer, state in states.items() for k, t in state.items()}
    keep.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, {"note": json.dumps(note)})
    return collected


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
    findings = [f"Strongest coherent strength: {said}."]
    findings += [
        f"{name} at {one.strength:g}: {_pull(one)}; a random direction there: "
        + _pull(next(m for m in found.measurements if _control(m, one)))
        + "."
        for name, one in best.items()
        if one is not None
    ]
    return {"findings": findings, "strongest": strongest, "grid": rows}


def _pull(one: Any) -> str:
    return (
        f"the word's log-probability {one.log_probability:+.2f}, the continuation's projection "
        f"{one.projection:+.3f}, perplexity {one.perplexity:.1f}"
    )


def _control(one: Any, steered: Any) -> bool:
    return (one.concept, one.strength, one.direction) == (steered.concept, steered.strength, "random")


def write(path: Path, about: list[str], found: dict[str, dict]) -> None:
    """Both files; after each study, so that a run cut short keeps what it has."""
    content = {"about": about, **found}
    path.with_suffix(".json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    with path.with_suffix(".csv").open("w", newline="") as file:
        file.write("".join(f"# {line}\n" for line in (*_made(found), *about)))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("study", "finding"))
        writer.writerows((name, line) for name, one in found.items() for line in one["findings"])


def _made(found: dict[str, dict]) -> Iterator[str]:
    """The commands, each with its day, machine and studies."""
    runs: dict[tuple[str, str], list[str]] = {}
    for name, one in found.items():
        runs.setdefault((one["command"], one["measured"]), []).append(name)
    for (command, measured), names in runs.items():
        yield command
        yield f"{', '.join(names)}: {measured}"


def earlier(path: Path) -> dict[str, dict]:
    """The studies of an earlier run."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    return {name: one for name, one in content.items() if name != "about"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--bench-data", help="a folder of emotion-vector-bench, stories of other authors")
    parser.add_argument("--study", action="append", help="only these; calibration is one")
    parser.add_argument("--quick", action="store_true", help="fewer layers, texts, strengths and seeds")
    parser.add_argument("--keep", type=Path, help="a folder that keeps the pass over the stories")
    options = parser.parse_args()
    if options.keep and options.quick:
        parser.error("--keep keeps the whole pass, and --quick makes another")
    model, tok = es.load(options.model)
    collected = moments(model, tok, options.keep / options.model) if options.keep else None
    setting = prepare(model, tok, bench_data=options.bench_data, quick=options.quick, collected=collected)
    bank = setting.bank
    about = [
        f"{bank.provenance['model']} ({bank.provenance['revision']})",
        f"{len(setting.stories)} stories, {len(bank)} emotions; readings after block {setting.layer}, "
        f"steering of blocks {setting.layers[0]} to {setting.layers[-1]}",
    ]
    given = [Path(one).name if Path(one).is_dir() else one for one in sys.argv[1:]]
    head = " ".join(["python", "bench/emotions.py", *map(shlex.quote, given)])
    path = RESULTS / f"emotions_{options.model}"
    found = earlier(path.with_suffix(".json"))
    for name in options.study or (*STUDIES, "calibration"):
        start = time.perf_counter()
        if name == "calibration":
            one = calibration(setting)
        else:
            study = import_module(f"emosteer.emotions.validation.{name}").study(setting)
            one = {"findings": study.findings, **study.numbers}
        seconds = round(time.perf_counter() - start, 1)
        found[name] = {"command": head, "measured": f"{date.today()}: {machine()}", **one, "seconds": seconds}
        write(path, about, found)
        print(f"{name}: " + "\n  ".join(found[name]["findings"]), flush=True)


if __name__ == "__main__":
    main()
