"""The 171 emotion words, and the stories and neutral dialogues that their directions come from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).parent / "data"
PERSONS = ("first", "third")
_KEYS = {"emotion": str, "topic": str, "person": str, "text": str}

WORDS: tuple[str, ...] = tuple((DATA / "words.txt").read_text(encoding="ascii").split("\n")[:-1])
"""The 171 emotion words of the emotion-vectors paper (Sofroniew et al., 2026)."""


@dataclass(frozen=True)
class Story:
    """A short text that expresses one emotion; unpacks as `emotion, text`, which `extract` takes.

    Attributes:
        emotion: the word that the text expresses and never names.
        topic: the situation it is set in.
        text: one paragraph.
        person: "first" or "third": who tells it.
    """

    emotion: str
    topic: str
    text: str
    person: str = "third"

    def __iter__(self) -> Iterator[str]:
        return iter((self.emotion, self.text))


class Corpus(tuple[Story, ...]):
    """Stories, and the neutral texts that go with them (`extract` takes both).

    Attributes:
        neutral: dialogues without emotional colour.
    """

    neutral: tuple[str, ...] = ()

    def only(self, emotions: Iterable[str]) -> Corpus:
        """The stories of these emotions.

        Raises:
            ValueError: an emotion without a story.
        """
        wanted = tuple(dict.fromkeys([emotions] if isinstance(emotions, str) else emotions))
        known = {story.emotion for story in self}
        missing = [word for word in wanted if word not in known]
        if missing:
            raise ValueError(
                f"no stories of {', '.join(missing)}; there are {len(known)} emotions in this corpus"
            )
        some = Corpus(story for story in self if story.emotion in wanted)
        some.neutral = self.neutral
        return some


def corpus() -> Corpus:
    """The stories that come with emosteer: each of the words in each of four situations."""
    found = Corpus(read_stories(DATA / "stories.jsonl"))
    found.neutral = neutral()
    return found


def neutral() -> tuple[str, ...]:
    """Dialogues without emotional colour: what `extract` takes the neutral components from."""
    return tuple(json.loads(line)["text"] for line in _lines(DATA / "neutral.jsonl"))


def read_stories(path: str | os.PathLike[str]) -> tuple[Story, ...]:
    """Read a corpus of one's own: one JSON object a line, with emotion, topic, person and text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: what is wrong with a line, by number.
    """
    stories = []
    for number, line in enumerate(_lines(path), 1):
        try:
            stories.append(parse_story(line))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
    return tuple(stories)


def parse_story(line: str) -> Story:
    """One line of a corpus.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(entry, dict) or set(entry) != set(_KEYS):
        got = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
        raise ValueError(f"expected an object with keys {sorted(_KEYS)}, got {got}")
    for key in _KEYS:
        if not isinstance(entry[key], str) or not entry[key].strip():
            raise ValueError(f"{key} must be a string that is not blank, got {entry[key]!r}")
    if entry["person"] not in PERSONS:
        raise ValueError(f"person must be one of {PERSONS}, got {entry['person']!r}")
    return Story(**entry)


def _lines(path: str | os.PathLike[str]) -> list[str]:
    # Not splitlines: a text may hold U+2028 and the like, which JSON leaves as they are.
    return Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
