"""`emosteer bench gpu`: the cases measured on a device, or each run once on a CPU (`--dry-run`)."""

from __future__ import annotations

import csv
import json
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROUNDS = 30
# Written between two calls, so that neither finds its data in the L2 cache: larger than any.
FLUSH_BYTES = 256 << 20


def run(*, dry_run: bool = False, containing: str = "") -> list[dict[str, Any]]:
    """Run the cases whose name contains a text; one result for each side of each.

    Raises:
        RuntimeError: there is no GPU and this is no dry run, or two sides of a case disagree.
    """
    if dry_run:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is first imported
    elif not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU; --dry-run runs every case once on the CPU")
    device = torch.device("cpu" if dry_run else "cuda")
    results = []
    with torch.no_grad(), ExitStack() as stack:
        for case in _cases(device, stack, small=dry_run):
            if containing not in case.name:
                continue
            if case.tolerance is not None:
                _agree(case)
            for side, function in case.sides.items():
                with function if hasattr(function, "__enter__") else nullcontext(function) as call:
                    times = _once(call) if dry_run else _measure(call)
                results.append(_result(case.name, side, case.moved, times))
    return results


def _cases(device: torch.device, stack: ExitStack, *, small: bool) -> Iterator[Any]:
    from .cases import covariance_cases, operation_cases
    from .model_cases import step_cases

    yield from operation_cases(device, small=small)
    yield from covariance_cases(device, small=small)
    yield from step_cases(device, stack, small=small)


def _agree(case: Any) -> None:
    """Every side gives what the last one does."""
    found = {}
    for side, function in case.sides.items():
        if case.reset is not None:
            case.reset()
        found[side] = function().float().clone()
    *sides, last = found
    for side in sides:
        apart = (found[side] - found[last]).norm() / found[last].norm()
        if not apart <= case.tolerance:
            raise RuntimeError(
                f"{case.name}: {side} and {last} differ by {apart:.2e} of the result's norm, "
                f"at most {case.tolerance:.2e} is rounding"
            )


def _once(call: Callable[[], Any]) -> list[float]:
    call()
    return []


def _measure(call: Callable[[], Any]) -> list[float]:
    """Seconds of each round, by events around one call on a cold L2 cache."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for _ in range(5):
        call()
    pairs = []
    for _ in range(ROUNDS):
        flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        pairs.append((start, stop))
    torch.cuda.synchronize()
    return [start.elapsed_time(stop) * 1e-3 for start, stop in pairs]


def _result(case: str, side: str, moved: float, times: list[float]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case, "side": side, "rounds": len(times)}
    if times:
        middle = statistics.median(times)
        low, _, high = statistics.quantiles(times, n=4)
        row |= {"median_us": middle * 1e6, "q1_us": low * 1e6, "q3_us": high * 1e6}
        row["gigabytes_per_second"] = moved / middle * 1e-9
    return row


def machine() -> dict[str, str]:
    """The GPU, its driver, and the versions that a measurement depends on."""
    import subprocess

    found = {"date": str(date.today()), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for name in ("emosteer", "triton", "transformers"):
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


def write(folder: Path, results: list[dict[str, Any]]) -> tuple[Path, Path]:
    """`gpu.json` and `gpu.csv`, both with the machine."""
    if not results:
        raise ValueError("no case ran: --case matches none of their names")
    folder.mkdir(parents=True, exist_ok=True)
    where = machine()
    whole, table = folder / "gpu.json", folder / "gpu.csv"
    whole.write_text(json.dumps({"machine": where, "results": results}, indent=1) + "\n")
    with table.open("w", newline="") as file:
        file.write("# " + ", ".join(f"{key} {value}" for key, value in where.items()) + "\n")
        writer = csv.DictWriter(file, list(results[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)
    return whole, table
