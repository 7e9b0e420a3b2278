"""What is asked, unit by unit: prompts, arms, seeds and how text is generated, with hashes that last."""

from .arms import CONTROLS, RANDOM, UNSTEERED, arms_of, with_controls
from .generation import Generation
from .grid import Plan
from .prompts import prompts_of
from .units import Arm, Prompt, Unit

__all__ = [
    "CONTROLS",
    "RANDOM",
    "UNSTEERED",
    "Arm",
    "Generation",
    "Plan",
    "Prompt",
    "Unit",
    "arms_of",
    "prompts_of",
    "with_controls",
]
