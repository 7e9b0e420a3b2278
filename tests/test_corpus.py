"""The corpus that comes along: well formed, topic-matched, and no story names its own emotion."""

from collections import Counter

import emosteer as es
from emosteer.emotions.check import problems
from emosteer.emotions.corpus import DATA


def test_the_words():
    assert len(es.emotions.WORDS) == len(set(es.emotions.WORDS)) == 171


def test_the_stories():
    corpus = es.emotions.corpus()
    covered = tuple(dict.fromkeys(story.emotion for story in corpus))
    assert problems(DATA / "stories.jsonl", covered) == []
    assert len(covered) >= 24
    assert Counter(Counter((s.emotion, s.topic) for s in corpus).values()) == {1: len(corpus)}
    assert len({story.topic for story in corpus}) == 4
    assert {"joyful", "desperate", "calm", "sad", "excited"} <= set(covered)


def test_the_neutral_dialogues():
    texts = es.emotions.neutral()
    assert len(set(texts)) == len(texts) >= 60
    assert es.emotions.corpus().neutral == texts


def test_a_story_unpacks():
    label, text = es.emotions.Story("calm", "letter", "words")
    assert (label, text) == ("calm", "words")
