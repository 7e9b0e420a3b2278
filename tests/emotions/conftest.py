"""A setting on the tiny model: what the studies compute is checked there, what they mean is not."""

import random
from pathlib import Path

import pytest

from emosteer.emotions import Story
from emosteer.emotions.validation import prepare

EMOTIONS = ("happy", "sad", "angry", "calm", "afraid", "excited", "desperate", "joyful")
TOPICS = ("letter", "train", "garden")
BENCH = Path(__file__).parents[3] / "shared" / "data" / "emotion-vector-bench"


def some_stories():
    rng = random.Random(0)
    for emotion in EMOTIONS:
        for topic in TOPICS:
            words = "".join(rng.choice("abcdefghij klmno prst") for _ in range(80))
            yield Story(emotion, topic, f"{topic} {emotion[::-1] * 3} {words}")


@pytest.fixture
def setting(tiny_llama):
    return prepare(*tiny_llama, stories=some_stories(), strengths=(0.1, 0.3), quick=False)


@pytest.fixture
def bench_data():
    """Stories of other authors, beside the checkout."""
    if not (BENCH / "stories").is_dir():
        pytest.skip(f"{BENCH} is not there: other authors' stories are not part of the repository")
    return BENCH
