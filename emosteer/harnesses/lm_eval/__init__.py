"""lm-evaluation-harness on a steered model: a model type for it, and a table of its scores over strengths.

    lm = SteeredLM("smollm2", "emotions.safetensors")
    scores = evaluate(lm, ["hellaswag"], [es.add("calm", s) for s in (0.05, 0.1)])

Importing this package registers the model type "emosteer"; `python -m emosteer.harnesses.lm_eval …` is the
harness's own command with it.
"""

from emosteer.spelling import program_of

from .model import SteeredLM
from .table import Score, evaluate

__all__ = ["Score", "SteeredLM", "evaluate", "program_of"]
