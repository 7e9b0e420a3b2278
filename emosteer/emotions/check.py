"""What a corpus must be: well formed, no word named in its own story, no part missing.

`python -m emosteer.emotions.check stories.jsonl` holds a file to the rules of the corpus that comes
along (`SHIPPED`); `emosteer corpus check` to those of any corpus. Both print what is wrong, line by
line, and then the emotion words that occur in stories of other emotions.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .corpus import DATA, WORDS, Story, parse_story


@dataclass(frozen=True)
class Rules:
    """What is asked of a corpus beyond well-formed lines, texts that differ, and emotions not named.

    Attributes:
        emotions: the only ones allowed, each of which must be there; None: any.
        least_words, most_words: of a text.
        ascii: texts must be ASCII.
        openings: no two texts may begin with the same five words.
        topics_match: every emotion must have a story for every topic of the file.
    """

    emotions: tuple[str, ...] | None = None
    least_words: int = 10
    most_words: int = 1000
    ascii: bool = False
    openings: bool = False
    topics_match: bool = False


SHIPPED = Rules(WORDS, 60, 90, ascii=True, openings=True, topics_match=True)


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


def problems(path: str | os.PathLike[str], rules: Rules = SHIPPED) -> list[str]:
    """What is wrong with a corpus of stories, one message a finding, by line number.

    Looked for besides what `rules` ask: lines that are not UTF-8 or not stories, stories that name
    their own emotion, and texts that occur twice.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found: list[str] = []
    seen: dict[tuple[str, str], int] = {}
    texts: dict[str, int] = {}
    openings: dict[str, int] = {}
    for number, story in numbered(Path(path).read_bytes()):
        if isinstance(story, str):
            found.append(f"line {number}: {story}")
            continue
        found += [f"line {number}: {what}" for what in _wrong_with(story, rules)]
        if story.text in texts:
            found.append(f"line {number}: the text of line {texts[story.text]} again")
        key = (story.emotion, story.topic)
        if rules.topics_match and key in seen:
            found.append(f"line {number}: {key[0]}/{key[1]} again, first on line {seen[key]}")
        opening = " ".join(story.text.split()[:5])
        if rules.openings and opening in openings:
            found.append(f"line {number}: opens as line {openings[opening]} does: {opening!r}")
        seen.setdefault(key, number)
        texts.setdefault(story.text, number)
        openings.setdefault(opening, number)
    if not seen:
        found.append("no line is a story")
    present = dict.fromkeys(emotion for emotion, _ in seen)
    topics = sorted({topic for _, topic in seen}) if rules.topics_match else []
    for word in rules.emotions or present:
        if word not in present:
            found.append(f"{word}: no story")
        elif lacking := [topic for topic in topics if (word, topic) not in seen]:
            found.append(f"{word}: no story for {', '.join(lacking)}")
    return found


def stories_of(path: str | os.PathLike[str]) -> list[Story]:
    """The lines of a file that are stories; the others are left out."""
    return [story for _, story in numbered(Path(path).read_bytes()) if isinstance(story, Story)]


def numbered(content: bytes) -> Iterator[tuple[int, Story | str]]:
    """Each line's number, and its story or what is wrong with it."""
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
        try:
            yield number, parse_story(line.decode("utf-8").removesuffix("\r"))
        except UnicodeDecodeError as error:
            yield number, f"not UTF-8: {error.reason} at byte {error.start}"
        except ValueError as error:
            yield number, str(error)


def _wrong_with(story: Story, rules: Rules) -> Iterable[str]:
    if rules.emotions is not None and story.emotion not in rules.emotions:
        yield f"emotion {story.emotion!r} is not on the list"
    named = forms(story.emotion).findall(story.text)
    if named:
        yield f"{story.emotion}/{story.topic} names its own emotion: {', '.join(named)}"
    length = len(story.text.split())
    if not rules.least_words <= length <= rules.most_words:
        yield (
            f"{story.emotion}/{story.topic} has {length} words, not {rules.least_words} to {rules.most_words}"
        )
    if rules.ascii and (not story.text.isascii() or "\n" in story.text):
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


def report(path: str | os.PathLike[str], rules: Rules) -> tuple[list[str], list[str]]:
    """`(problems, leaks)` as lines to print."""
    found = problems(path, rules)
    stories = stories_of(path)
    emotions = sorted({story.emotion for story in stories})
    words = dict.fromkeys([*WORDS, *emotions])
    return found, [f"{emotion}: {word} ×{n}" for (emotion, word), n in leaks(stories, words).most_common()]


def main(arguments: list[str]) -> int:
    """The command; see the module."""
    if len(arguments) != 1:
        print("usage: python -m emosteer.emotions.check stories.jsonl", file=sys.stderr)
        return 2
    found, other = report(arguments[0], SHIPPED)
    print("\n".join(found) if found else "nothing wrong")
    print("\n".join(f"  {line}" for line in other))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
