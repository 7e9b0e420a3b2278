"""Human ratings of emotion words: valence and arousal."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable

from .corpus import DATA

Ratings = dict[str, tuple[float, float]]


def russell() -> Ratings:
    """Word → (valence, arousal) of 28 words on the circle of Russell (1980): cosine and sine of its angle."""
    with (DATA / "russell_1980.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    angles = {row["word"]: math.radians(float(row["angle_degrees"])) for row in rows}
    return {word: (math.cos(a), math.sin(a)) for word, a in angles.items()}


def vader(words: Iterable[str]) -> dict[str, float]:
    """Word → valence from −4 to 4, for those that vaderSentiment's lexicon has (Hutto & Gilbert, 2014).

    Raises:
        ImportError: vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise ImportError('valence ratings need vaderSentiment: pip install "emosteer[demo]"') from None
    lexicon = SentimentIntensityAnalyzer().lexicon
    return {word: lexicon[word] for word in words if word in lexicon}


def read_ratings(path: str | os.PathLike[str]) -> Ratings:
    """Ratings of one's own: a header with word, valence and arousal, or NRC-VAD's own columns.

    Separated by tabs or commas. NRC-VAD (Mohammad, 2018) calls them `Word`/`term`, `Valence`, `Arousal`,
    `Dominance`; its first version has no header.

    Raises:
        ValueError: what is wrong with which line.
    """
    ratings: Ratings = {}
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        separator = "\t" if "\t" in first else ","
        columns = [name.strip().lower() for name in first.rstrip("\r\n").split(separator)]
        if "valence" in columns and "arousal" in columns:
            word = next((columns.index(name) for name in ("word", "term") if name in columns), 0)
            at, skip = (word, columns.index("valence"), columns.index("arousal")), 1
        else:
            at, skip = (0, 1, 2), 0
        for number, row in enumerate(csv.reader(file, delimiter=separator), 1):
            if number <= skip or not row:
                continue
            try:
                name, valence, arousal = (row[i] for i in at)
                ratings[name.strip().lower()] = (float(valence), float(arousal))
            except (IndexError, ValueError):
                raise ValueError(
                    f"{os.fspath(path)}, line {number}: expected a word, its valence and its arousal, got {row}"
                ) from None
    if not ratings:
        raise ValueError(f"{os.fspath(path)} rates no word")
    return ratings
