"""Emotion concepts: words, stories that express them without naming them, their geometry."""

from .cached import bank
from .corpus import WORDS, Corpus, Story, corpus, neutral, read_stories

__all__ = ["WORDS", "Corpus", "Story", "bank", "corpus", "neutral", "read_stories"]
