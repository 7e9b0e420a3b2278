"""`emosteer bench gpu`: the cases measured on a device, or each run once on a CPU (`--dry-run`).

It may get one chance, so it loses nothing: each case and each side has its own try and its own row, whatever
comes of it, and the files are written anew after each case.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .report import Report

ROUNDS = 30
# Calls of one measurement of the caller's time: fewer than a device's queue holds.
HOST_CALLS = 100
# Written between two calls, so that neither finds its data in the L2 cache: larger than any.
FLUSH_BYTES = 256 << 20
# Of the memory that a case is thought to take, since nobody counts everything.
HEADROOM = 1.25


def run(
    out: Path | None, *, dry_run: bool = False, containing: str = "", minutes: float | None = None
) -> Report:
    """Run the cases whose name contains a text; one row for each side of each, written to `out` as they come.

    Args:
        out: the folder of `gpu.csv`, `gpu.json` and `gpu.md`; None to write nothing.
        dry_run: every case once, small, on the CPU.
        containing: of the names of cases.
        minutes: no case is begun after so many.

    Raises:
        RuntimeError: there is no GPU and this is no dry run.
        ValueError: no case's name contains the text.
    """
    if dry_run:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is first imported
    elif not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU; --dry-run runs every case once on the CPU")
    device = torch.device("cpu" if dry_run else "cuda")
    plans = [plan for plan in _plans(device, small=dry_run) if containing in plan.name]
    if not plans:
        raise ValueError(f"no case ran: --case {containing!r} is in none of their names")
    report, ends = Report(out), None if minutes is None else perf_counter() + 60 * minutes
    with torch.no_grad():
        for plan in plans:
            if why := _skipped(plan, device, ends):
                report.add({"case": plan.name, "side": "all", "status": f"skipped: {why}"})
                continue
            try:
                for row in _rows(plan.make(), device):
                    report.add(row)
            except Exception as error:  # a case that cannot be made is a row, and the next one is run
                report.add({"case": plan.name, "side": "all", "status": _said(error)})
            report.write()
            _clear(device)
    report.write()
    return report


def _plans(device: torch.device, *, small: bool) -> Iterator[Any]:
    """Decoding sizes and model steps first: what an interrupted run is least wanted without."""
    from .cases import covariance_plans, operation_plans
    from .model_cases import step_plans

    operations = list(operation_plans(device, small=small))
    first = [plan for plan in operations if "×4096 bfloat16" in plan.name or small]
    yield from first
    yield from step_plans(device, small=small)
    yield from (plan for plan in operations if plan not in first)
    yield from covariance_plans(device, small=small)


def _skipped(plan: Any, device: torch.device, ends: float | None) -> str | None:
    if ends is not None and perf_counter() > ends:
        return "the minutes were over"
    if device.type == "cuda":
        free = torch.cuda.mem_get_info()[0]
        if plan.bytes * HEADROOM > free:
            return f"needs about {plan.bytes * HEADROOM / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
    return None


def _rows(case: Any, device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each side, in the order of the case."""
    from .cases import entered

    apart = _disagreements(case) if case.tolerance is not None else {}
    for side, function in case.sides.items():
        row: dict[str, Any] = {"case": case.name, "side": side, "op": case.op, "shape": case.shape}
        if side in apart:
            row["status"] = apart[side]
            if not apart[side].startswith("differs"):
                yield row
                continue
        try:
            with entered(function) as call:
                if device.type == "cuda":
                    row |= _timed(_measure(call), case.moved) | {"host_us": _host(call)}
                else:
                    call()
            row.setdefault("status", "ok")
        except Exception as error:
            row["status"] = _said(error)
        yield row


def _disagreements(case: Any) -> dict[str, str]:
    """What is wrong with the results of sides, each held against the last one's."""
    found, wrong = {}, {}
    for side, function in case.sides.items():
        if side in case.unlike:
            continue
        try:
            if case.reset is not None:
                case.reset()
            found[side] = function().float().clone()
        except Exception as error:
            wrong[side] = _said(error)
    if not found:
        return wrong
    last = list(found)[-1]
    for side, result in found.items():
        off = float((result - found[last]).norm() / found[last].norm())
        if not off <= case.tolerance:
            wrong[side] = (
                f"differs from {last} by {off:.2e} of the result's norm; at most {case.tolerance:.2e} is rounding"
            )
    if case.reset is not None:
        case.reset()
    return wrong


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {text}"
    return f"failed: {type(error).__name__}: {text}"


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


def _host(call: Callable[[], Any]) -> float:
    """Microseconds of the caller's time a call: what the wait for a flushed cache hides above."""
    call()
    torch.cuda.synchronize()
    began = perf_counter()
    for _ in range(HOST_CALLS):
        call()
    took = perf_counter() - began
    torch.cuda.synchronize()
    return took / HOST_CALLS * 1e6


def _timed(times: list[float], moved: float) -> dict[str, float]:
    low, middle, high = (value * 1e6 for value in statistics.quantiles(times, n=4))
    return {
        "median_us": middle,
        "q1_us": low,
        "q3_us": high,
        "gigabytes_per_second": moved / middle * 1e-3,
        "rounds": len(times),
    }


def _clear(device: torch.device) -> None:
    """What a case left: its memory, and a device that an error may have left busy."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        pass  # a device that is lost fails each case that follows, and each says so
