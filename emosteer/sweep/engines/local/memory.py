"""How much fits into a batch: estimated at the start, halved whenever memory runs out."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch

from .passes import Passes

# Shares of the memory that is free at the start.
_FOR_PASSES, _FOR_CACHE, _FOR_LOGITS = 0.25, 0.3, 0.1

# Beyond these, a batch is no faster.
_MOST = {"cpu": (8192, 256), "cuda": (65536, 1024)}

# Sequences of one pass at most, whatever their width: a steering table holds twice as many programs.
MOST_ROWS = 1024


class Budget:
    """Tokens and sequences of a batch at most.

    Args:
        passes: the model.
        tokens: columns times sequences of a pass; None: what memory holds.
        rows: sequences that generate together, and tokens whose logits are wanted at once; None likewise.
    """

    def __init__(self, passes: Passes, tokens: int | None = None, rows: int | None = None) -> None:
        for name, value in (("batch_tokens", tokens), ("batch_rows", rows)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        self._free = free_memory(passes.device)
        most_tokens, most_rows = _MOST["cuda" if passes.device.type == "cuda" else "cpu"]
        fits_tokens = int(_FOR_PASSES * self._free / _bytes_per_token(passes))
        fits_rows = int(_FOR_LOGITS * self._free / (_vocabulary(passes) * 12))
        self.tokens = tokens or max(min(most_tokens, fits_tokens), 64)
        self.rows = min(rows, MOST_ROWS) if rows else max(min(most_rows, fits_rows), 1)

    def rows_of_width(self, width: int) -> int:
        """How many sequences of so many new tokens one pass takes; one at least."""
        return max(min(self.tokens // max(width, 1), 4 * self.rows, MOST_ROWS), 1)

    def cached_rows(self, columns: int, bytes_per_column: int) -> int:
        """How many sequences may generate together, by the memory of their keys and values."""
        return max(min(self.rows, int(_FOR_CACHE * self._free / max(columns * bytes_per_column, 1))), 1)

    def halve(self) -> None:
        """Memory ran out: smaller batches from now on."""
        self.tokens, self.rows = max(self.tokens // 2, 1), max(self.rows // 2, 1)
        self._free //= 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory")
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on a CPU within the limits of the control group as well."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = 4 << 30
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        free = min(free, int(limit) - int(used))
    return max(free, 64 << 20)


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _bytes_per_token(passes: Passes) -> int:
    """Activations of one block, and keys and values of all, of one token; an estimate from above."""
    dim, widest, size = passes.decoder.dim, 0, 4
    for parameter in passes.decoder.blocks[0].parameters():
        widest, size = max([widest, *parameter.shape]), parameter.element_size()
    return size * (12 * dim + 4 * widest + 2 * dim * passes.decoder.depth)


def _vocabulary(passes: Passes) -> int:
    config: Any = passes.model.config
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    return getattr(text, "vocab_size", None) or 32_000
