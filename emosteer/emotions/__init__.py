"""Emotion concepts: words, stories that express them without naming them, their geometry."""

from .corpus import WORDS, Story, corpus, neutral, read_stories

__all__ = ["WORDS", "Story", "corpus", "neutral", "read_stories"]
