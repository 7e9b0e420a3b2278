"""A reading as one page that needs nothing else: no network, no other file."""

from __future__ import annotations

import json
from importlib.resources import files

from emosteer._version import __version__

from .scores import UNITS, Scores
from .terminal import BLUE, RED


def page(reading: Scores) -> str:
    """The page of `page.html` with the reading's numbers in it, to three digits after the point."""
    order = [name for name, _ in reading.top(len(reading.names))]
    column = [reading.names.index(name) for name in order]
    content = {
        "tokens": reading.tokens,
        "turns": [{"role": t.role, "start": t.start, "stop": t.stop} for t in reading.turns],
        "names": order,
        "scores": [[round(float(v), 3) for v in row] for row in reading.scores.T[column].tolist()],
        "means": [round(float(reading.mean()[k]), 3) for k in column],
        "unit": UNITS[reading.unit],
        "layers": list(reading.layers),
        "counted": reading.counted(),
        "colours": {"low": BLUE, "high": RED},
        "version": __version__,
    }
    # "<" would let a text close the script that carries it
    embedded = json.dumps(content, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    return (
        files(__package__).joinpath("page.html").read_text(encoding="utf-8").replace("__READING__", embedded)
    )
