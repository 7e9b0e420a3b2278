"""Sweeps: prompts × concepts × strengths in mixed batches, into a folder that survives whatever happens.

    metrics = [es.metrics.choices([" A", " B"])]
    es.Sweep("smollm2", bank=bank, prompts=[…], strengths=(0.05, 0.1), metrics=metrics).run("out")

What is asked is in `definition` (as a whole) and `plan` (unit by unit), where it runs in `engines`, what is
kept in `store`, what is made of it in `metrics` and `report`; `sweep` connects them.
"""

from __future__ import annotations

from importlib import import_module

# Imported where they are first used: plan, runner and metrics need no pyarrow, the store does.
_EXPORTS = {
    "FolderError": "store",
    "Generation": "plan",
    "Plan": "plan",
    "Prompt": "plan",
    "Row": "metrics.row",
    "Runner": "engines.local",
    "Store": "store",
    "Sweep": "sweep",
    "Unit": "plan",
    "Work": "engines.work",
}

__all__ = [*_EXPORTS, "metrics"]


def __getattr__(name: str):
    if name in _EXPORTS:
        value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    elif name == "metrics":
        value = import_module(f"{__name__}.metrics")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
