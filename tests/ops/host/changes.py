"""Sources with something else in them: what is planted, and where."""

from collections.abc import Mapping, Sequence
from pathlib import Path

# By file, texts that occur once in it and what to put instead. What is put there may ask `planted(number)`.
Changes = Mapping[str, Sequence[tuple[str, str]]]
HEADER = Path(__file__).with_name("planted.hpp")


def changed(name: str, text: str, changes: Changes) -> str:
    """The text of a file with what is planted in it."""
    for old, new in changes.get(name, ()):
        if text.count(old) != 1:
            raise ValueError(f"{old!r} occurs {text.count(old)} times in {name}, expected once")
        text = text.replace(old, new)
    return text
