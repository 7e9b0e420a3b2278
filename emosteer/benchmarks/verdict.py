"""Measured ÷ predicted for each kernel, and which assumptions of `predicted` were off."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from .devices import Device
from .predicted import BANDWIDTH_SHARE, LAUNCH, REDUCTION, START, TRIP, work

# Predictions within this factor of the measurement hold.
HOLDS = 1.25
# Sizes that a bandwidth shows at: bytes.
LARGE = 64 << 20

Row = dict[str, Any]


def predicted_us(row: Row, device: Device) -> float | None:
    """What `predicted` says of a row's operation and size, None where it says nothing."""
    if not row.get("op"):
        return None
    tokens, dim, item = row["shape"]
    resident = dim <= 8192 and (
        row["side"] == "cuda" or row["op"] != "steer_rms_norm_" or dim * item <= 16384
    )
    return work(row["op"], tokens, dim, item, resident=resident).seconds(device) * 1e6


def headlines(rows: list[Row]) -> list[str]:
    """The few figures that a reader asks for first."""
    found = []
    for row in rows:
        if row.get("measured_over_predicted") and row["case"].startswith(
            ("steer_ 1×4096", "steer_rms_norm_ 1×4096")
        ):
            found.append(f"{row['case']} {row['side']} {row['median_us']:.1f} µs")
    for case in dict.fromkeys(row["case"] for row in rows if row["case"].startswith("decode step B=1 ")):
        times = {
            row["side"]: row["median_us"] for row in rows if row["case"] == case and row.get("median_us")
        }
        if "steered" in times and "unsteered" in times:
            found.append(f"{case} steered ÷ unsteered {times['steered'] / times['unsteered']:.3f}")
    return found


def lines(rows: list[Row], device: Device | None) -> list[str]:
    """The page: each kernel's ratios, then each assumption with what was measured."""
    if device is None:
        return [
            "This GPU's data sheet is not among `emosteer/benchmarks/devices.py`: nothing was predicted for it."
        ]
    measured = [row for row in rows if row.get("measured_over_predicted")]
    if not measured:
        return ["Nothing was measured that `predicted` knows."]
    table = [
        "| kernel | sizes | measured ÷ predicted, median | least | most |",
        "| --- | --- | --- | --- | --- |",
    ]
    for side, op in dict.fromkeys((row["side"], row["op"]) for row in measured):
        ratios = [
            row["measured_over_predicted"] for row in measured if (row["side"], row["op"]) == (side, op)
        ]
        middle = statistics.median(ratios)
        table.append(
            f"| {side} {op} | {len(ratios)} | {middle:.2f} | {min(ratios):.2f} | {max(ratios):.2f} |"
        )
    return [
        *table,
        "",
        "## Assumptions of `emosteer/benchmarks/predicted.py`",
        "",
        *assumptions(rows, device),
    ]


def assumptions(rows: list[Row], device: Device) -> list[str]:
    """One line each: what was assumed, what was measured, whether it holds."""
    copies = [
        row["gigabytes_per_second"] * 1e9 / device.bandwidth
        for row in rows
        if row["side"] == "copy of the bytes" and _moved(row) >= LARGE
    ]
    shortest = [
        row["median_us"] for row in rows if row.get("op") == "rms_norm" and _tokens(row) == 1 and _ours(row)
    ]
    single = [
        row["median_us"] for row in rows if row.get("op") == "steer_" and _tokens(row) == 1 and _ours(row)
    ]
    found = [
        _line("BANDWIDTH_SHARE", BANDWIDTH_SHARE, copies, ""),
        _line("START + TRIP + 2 REDUCTION", (START + TRIP + 2 * REDUCTION) * 1e6, shortest, " µs"),
        _line("START + 2 TRIP + 4 REDUCTION", (START + 2 * TRIP + 4 * REDUCTION) * 1e6, single, " µs"),
    ]
    for side, assumed in LAUNCH.items():
        bound = [
            row["host_us"]
            for row in rows
            if row["side"] == side and row.get("op") == "steer_rms_norm_" and _few(row)
        ]
        found.append(_line(f"LAUNCH[{side!r}]", assumed * 1e6, bound, " µs"))
    return found


def _line(name: str, assumed: float, measured: Iterable[float], unit: str) -> str:
    values = list(measured)
    if not values:
        return f"- {name}: {assumed:.2f}{unit} assumed, not measured"
    middle = statistics.median(values)
    ratio = middle / assumed
    verdict = "holds" if 1 / HOLDS <= ratio <= HOLDS else f"off by a factor of {max(ratio, 1 / ratio):.2f}"
    return f"- {name}: {assumed:.2f}{unit} assumed, {middle:.2f}{unit} measured: {verdict}"


def _ours(row: Row) -> bool:
    return row["side"] in LAUNCH and bool(row.get("median_us"))


def _few(row: Row) -> bool:
    return bool(row.get("host_us")) and _tokens(row) <= 32


def _tokens(row: Row) -> int:
    return (row.get("shape") or (0,))[0]


def _moved(row: Row) -> float:
    return (row.get("gigabytes_per_second") or 0.0) * 1e3 * (row.get("median_us") or 0.0)
