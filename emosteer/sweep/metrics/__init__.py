"""What a sweep measures of each unit: `es.metrics.choices(["A", "B"])` and the like.

Every metric gives a headline `value` and may give several named `values`; a metric that throws marks
its result as failed with the reason, and the sweep goes on.
"""

from .base import Measured, Metric, Seen
from .likelihood import choices, perplexity, phrases
from .reading import readings
from .text import classifier, judge, lexicon, regex, repetition, text

# The names that a YAML file may use.
KINDS = {
    "choices": choices,
    "classifier": classifier,
    "judge": judge,
    "lexicon": lexicon,
    "perplexity": perplexity,
    "phrases": phrases,
    "readings": readings,
    "regex": regex,
    "repetition": repetition,
    "text": text,
}

__all__ = [*KINDS, "KINDS", "Measured", "Metric", "Seen"]
