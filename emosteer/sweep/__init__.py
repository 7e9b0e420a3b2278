"""Sweeps: prompts × concepts × strengths in mixed batches, into a folder that survives whatever happens.

    metrics = [es.metrics.choices([" A", " B"])]
    metrics = [es.metrics.choices([" A", " B"])]
    es.Sweep("smollm2", bank=bank, prompts=[…], strengths=(0.05, 0.1), metrics=metrics).run("out")

A sweep's definition makes a `Plan`, which streams units; a `Runner` turns units into rows; a `Store`
keeps rows in a folder and says which are done. An engine connects the three.
"""

from . import metrics
from .generation import Generation
from .plan import Plan, Prompt, Unit
from .runner import Runner, Work
from .store import FolderError, Row, Store
from .sweep import Sweep

__all__ = [
    "FolderError",
    "Generation",
    "Plan",
    "Prompt",
    "Row",
    "Runner",
    "Store",
    "Sweep",
    "Unit",
    "Work",
    "metrics",
]
