"""A few of the shipped stories: enough to steer and to read with, in seconds."""

from collections.abc import Iterable

from emosteer.emotions import Corpus, corpus


def few_stories(emotions: Iterable[str] | None = None, topics: int = 2, neutral: int = 12) -> Corpus:
    """Those of some emotions (all by default) in the first so many situations, with so many neutral texts."""
    whole = corpus()
    chosen = sorted({story.topic for story in whole})[:topics]
    named = whole if emotions is None else whole.only(emotions)
    found = Corpus(story for story in named if story.topic in chosen)
    found.neutral = whole.neutral[:neutral]
    return found
