"""The demo's page: everything it found, in one file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emosteer.reading import Reading

_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>emosteer demo</title>
<style>
  body { font: 16px/1.6 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
  table { border-collapse: collapse; width: 100%; } td, th { border-top: 1px solid #ddd; padding: .4rem .8rem;
  text-align: left; vertical-align: top; } td:first-child { white-space: nowrap; font-weight: 600; }
  img { max-width: 100%; } iframe { width: 100%; height: 40rem; border: 1px solid #ddd; border-radius: .4rem; }
  .note { color: #666; }
</style>
</head>
<body>
"""


def write(out: Path, numbers: Mapping[str, Any], readings: Mapping[str, Reading]) -> None:
    """`index.html` in `out`; `circumplex.png` is there already and goes into it."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in numbers["texts"].items()
    )
    picture = base64.b64encode((out / "circumplex.png").read_bytes()).decode()
    found = numbers["circumplex"]
    parts = [
        _HEAD,
        "<h1>Emotions of a language model, read and steered</h1>",
        f'<p class="note">{numbers["concepts"]} emotion directions, extracted from {numbers["stories"]} short stories '
        f"in {numbers['extraction_seconds']:.0f} s. Decoding 16 rows under 16 programs took "
        f"{numbers['steered_over_unsteered']:.3f} × the unsteered time.</p>",
        f"<h2>“{escape(numbers['prompt'])}”</h2>",
        "<p>One batch, a program a row; greedy.</p>",
        f"<table><tr><th>program</th><th>continuation</th></tr>{rows}</table>",
        "<h2>The circumplex</h2>",
        f"<p>Principal components of the directions after block {found['layer']}: r = {found['valence_r']:.2f} with "
        f"human ratings of valence, {found['arousal_r']:.2f} of arousal.</p>",
        f'<img alt="the circumplex of emotions" src="data:image/png;base64,{picture}">',
    ]
    for title, reading in readings.items():
        parts += [
            f"<h2>Read: {escape(title)}</h2>",
            f'<iframe title="{escape(title)}" srcdoc="{escape(reading.to_html())}"></iframe>',
        ]
    parts.append("</body>\n</html>\n")
    (out / "index.html").write_text("\n".join(parts), encoding="utf-8")
