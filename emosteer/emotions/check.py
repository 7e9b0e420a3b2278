"""What a corpus must be: well formed, no word named in its own story, no part missing.

`python -m emosteer.emotions.check stories.jsonl` prints what is wrong and exits with 1 if anything
is, then lists the emotion words that occur in stories of other emotions.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable
from functools import cache

from .corpus import DATA, WORDS, Story, _lines, parse_story

LEAST_WORDS, MOST_WORDS = 60, 90


@cache
def forms(word: str) -> re.Pattern[str]:
    """What counts as naming an emotion: the word, its inflections and what is derived from it.

    Words outside the list of 171 count as themselves, with any ending.
    """
    stem = _forms_file().get(word, re.escape(word))
    return re.compile(rf"\b(?:{stem})\w*", re.IGNORECASE)


@cache
def _forms_file() -> dict[str, str]:
    lines = (DATA / "forms.tsv").read_text(encoding="ascii").split("\n")[:-1]
    return dict(line.split("\t") for line in lines)


def problems(path: str | os.PathLike[str], words: Iterable[str] = WORDS) -> list[str]:
    """What is wrong with a corpus of stories, one message a finding, by line number.

    Looked for: lines that are not stories, emotions outside `words`, stories that name their own
    emotion, the same text, opening (five words) or emotion and topic twice, texts of fewer than 60
    or more than 90 words or with characters outside ASCII, and emotions that lack a topic which
    others have.
    """
    words = tuple(words)
    found: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    openings: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            story = parse_story(line)
        except ValueError as error:
            found.append(f"line {number}: {error}")
            continue
        found += [f"line {number}: {what}" for what in _wrong_with(story, words)]
        key = (story.emotion, story.topic)
        if key in seen:
            found.append(f"line {number}: {key[0]}/{key[1]} again, first on line {seen[key]}")
        opening = " ".join(story.text.split()[:5])
        if opening in openings:
            found.append(f"line {number}: opens as line {openings[opening]} does: {opening!r}")
        seen.setdefault(key, number)
        openings.setdefault(opening, number)
    topics = sorted({topic for _, topic in seen})
    for word in words:
        lacking = [topic for topic in topics if (word, topic) not in seen]
        if lacking:
            found.append(f"{word}: no story for {', '.join(lacking)}")
    return found


def _wrong_with(story: Story, words: tuple[str, ...]) -> Iterable[str]:
    if story.emotion not in words:
        yield f"emotion {story.emotion!r} is not on the list"
    named = forms(story.emotion).findall(story.text)
    if named:
        yield f"{story.emotion}/{story.topic} names its own emotion: {', '.join(named)}"
    length = len(story.text.split())
    if not LEAST_WORDS <= length <= MOST_WORDS:
        yield f"{story.emotion}/{story.topic} has {length} words, not {LEAST_WORDS} to {MOST_WORDS}"
    if not story.text.isascii() or "\n" in story.text:
        yield f"{story.emotion}/{story.topic} is not one line of ASCII"


def leaks(stories: Iterable[Story], words: Iterable[str] = WORDS) -> Counter[tuple[str, str]]:
    """How often stories of one emotion use a form of another: `(emotion, other word)` -> uses.

    Not every hit is a leak ("a kind of", "shook hands"); this is a list to read.
    """
    words = tuple(words)
    count: Counter[tuple[str, str]] = Counter()
    for story in stories:
        for word in words:
            uses = len(forms(word).findall(story.text))
            if uses and word != story.emotion:
                count[story.emotion, word] += uses
    return count


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    if len(arguments) != 1:
        print("usage: python -m emosteer.emotions.check stories.jsonl", file=sys.stderr)
        return 2
    found = problems(arguments[0])
    print("\n".join(found) if found else "nothing wrong")
    stories = []
    for line in _lines(arguments[0]):
        try:
            stories.append(parse_story(line))
        except ValueError:
            continue
    for (emotion, word), uses in leaks(stories).most_common():
        print(f"  {emotion}: {word} ×{uses}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
