"""The machine code of every variant of a Triton kernel, read without a GPU: `emosteer bench static --all`."""

from __future__ import annotations

import csv
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .devices import ARCHITECTURES


def rows(targets: Iterable[str] = tuple(ARCHITECTURES)) -> list[dict[str, Any]]:
    """One row for each variant that a call can reach and each target."""
    from emosteer.kernels.survey import digests, every, survey

    picks = every(*targets)
    digest = digests(picks)
    return [
        {
            **pick._asdict(),
            "digest": digest[pick],
            **found.as_dict(),
            "resident_threads": ARCHITECTURES[pick.target].resident_threads(
                found.registers, found.shared, found.threads
            ),
        }
        for pick, found in survey(picks).items()
    ]


def write(folder: Path, found: list[dict[str, Any]], seconds: float) -> tuple[Path, Path]:
    """`machine_code.csv` with every row, `machine_code.md` with a row for each target."""
    folder.mkdir(parents=True, exist_ok=True)
    table, page = folder / "machine_code.csv", folder / "machine_code.md"
    head = f"emosteer bench static --all, {time.strftime('%Y-%m-%d')}; {versions()}"
    with table.open("w", newline="") as file:
        file.write(f"# {head}\n")
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    page.write_text(
        "# Every variant of the Triton kernels, compiled without a GPU\n\n"
        f"{head}; {seconds:.0f} s with what Triton's cache held.\n\n{summary(found)}"
    )
    return table, page


def summary(found: list[dict[str, Any]]) -> str:
    """Variants, spills, accesses of 16 bytes and room for threads, by target."""
    lines = [
        "| target | variants | that spill | aligned, with 16-byte loads | not aligned, with any "
        "| most registers | least resident threads |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for target in dict.fromkeys(row["target"] for row in found):
        here = [row for row in found if row["target"] == target]
        wide = {
            aligned: [row["wide_loads"] > 0 for row in here if (row["dim"] % 16 == 0) == aligned]
            for aligned in (True, False)
        }
        cells = (
            target,
            len(here),
            len(spilling(here)),
            f"{sum(wide[True])} of {len(wide[True])}",
            f"{sum(wide[False])} of {len(wide[False])}",
            max(row["registers"] for row in here),
            min(row["resident_threads"] for row in here),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def spilling(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that use local memory."""
    return [row for row in found if row["spills"]]


def versions() -> str:
    """Of Triton and of the assembler inside it."""
    import triton

    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    said = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    return f"triton {triton.__version__}, ptxas {said.split('release ')[1].split(',')[0]}"
