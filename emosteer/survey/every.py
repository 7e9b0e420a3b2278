"""Which architectures of the installed transformers are steered, how, and which not and why."""

from __future__ import annotations

import csv
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .row import KINDS, Row
from .trial import tried

SECONDS = 30.0


def architectures() -> list[tuple[str, str]]:
    """`(kind, model type)` of every language model configuration that the installed transformers knows."""
    from transformers.models.auto import modeling_auto

    found: dict[str, str] = {}
    for kind, mapping in KINDS.items():
        for model_type in getattr(modeling_auto, mapping):
            found.setdefault(model_type, kind)
    return [(kind, model_type) for model_type, kind in found.items()]


def survey(
    wanted: Sequence[tuple[str, str]], *, seconds: float = SECONDS, say: Callable[[Row], Any] | None = None
) -> list[Row]:
    """Try each architecture in a process of its own, for at most so many seconds."""
    tried("causal", "llama")  # what every trial imports is imported once, before the processes part
    rows = []
    for kind, model_type in wanted:
        row = _apart(kind, model_type, seconds)
        rows.append(row)
        if say is not None:
            say(row)
    return rows


def _apart(kind: str, model_type: str, seconds: float) -> Row:
    """A model that hangs or crashes takes its process with it, not the survey."""
    import multiprocessing

    context: Any = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, tried, kind, model_type), daemon=True)
    began = time.perf_counter()
    process.start()
    sender.close()
    row = Row(kind, model_type, "too slow", reason=f"more than {seconds:g} s")
    try:
        if receiver.poll(seconds):
            row = receiver.recv()
    except EOFError:
        process.join()
        code = process.exitcode or 0
        died = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        row = Row(kind, model_type, "not built", reason=f"its process died: {died}")
    process.kill()
    process.join()
    return replace(row, seconds=round(time.perf_counter() - began, 1))


def _send(sender: Any, tried: Callable[[str, str], Row], kind: str, model_type: str) -> None:
    import contextlib

    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        sender.send(tried(kind, model_type))


def write(rows: Sequence[Row], table: Path, page: Path | None = None) -> None:
    """The CSV and, from it, the page."""
    head = (
        f"# emosteer doctor --architectures\n# {date.today()}: Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    )
    with table.open("w", newline="", encoding="utf-8") as file:
        file.write(head + "\n")
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    if page is not None:
        page.write_text("\n".join(_page(read(table), head)) + "\n", encoding="utf-8")


def read(table: Path) -> list[Row]:
    """The rows of a CSV."""
    with table.open(encoding="utf-8", newline="") as file:
        lines = csv.DictReader(line for line in file if not line.startswith("#"))
        numbers: dict[str, Callable[[str], Any]] = {"depth": int, "fused": int, "seconds": float}
        return [
            Row(**{name: numbers.get(name, str)(value) for name, value in line.items()}) for line in lines
        ]


def _page(rows: Sequence[Row], head: str) -> Iterator[str]:
    said = head.replace("# ", "").splitlines()[1]
    yield from (
        "# Every architecture",
        "",
        "Each causal, vision-language and encoder–decoder model of the installed transformers, built tiny from its",
        "configuration and steered at all blocks, two programs in a batch; its logits against plain hooks in",
        "float64. This page is made by `emosteer doctor --architectures --out docs/architectures.md`; its table",
        "is [bench/results/architectures.csv](../bench/results/architectures.csv).",
        "",
        f"{said}.",
        "",
        "*right*: within 1e-4 of steering by hand. *fused*: blocks steered inside the norm that reads them;",
        "the others are steered at their output. *refused*: emosteer says why and steers nothing. *not built*: the",
        "configuration wants sizes of its own; nothing is known about it.",
        "",
    )
    for kind in KINDS:
        here = [row for row in rows if row.kind == kind]
        if not here:
            continue
        counts = {
            v: sum(row.verdict == v for row in here) for v in dict.fromkeys(row.verdict for row in here)
        }
        yield from (f"## {kind.capitalize()}", "", ", ".join(f"{n} {v}" for v, n in counts.items()) + ".", "")
        yield from (
            "| model type | | blocks | fused | error | why not |",
            "| --- | --- | --- | --- | --- | --- |",
        )
        for row in sorted(here, key=lambda row: row.model_type):
            fused = f"{row.fused} of {row.depth}" if row.depth else ""
            reason = row.reason.replace("|", "\\|").replace("\n", " ")
            where = f"`{row.blocks}`" if row.blocks else ""
            yield f"| {row.model_type} | {row.verdict} | {where} | {fused} | {row.error} | {reason} |"
        yield ""
