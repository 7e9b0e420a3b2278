"""`emosteer validate`: look for what the emotion-vectors paper found, and write a report."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console


def validate(
    model: str = typer.Option("smollm2", help="A Hub id, a folder, a GGUF file, or smollm2."),
    out: Path = typer.Option(Path("out/validation"), help="Where the report goes."),  # noqa: B008
    quick: bool = typer.Option(False, help="Fewer layers, texts, strengths and seeds."),
    stories: Path | None = typer.Option(None, help="A corpus of one's own (JSON lines)."),  # noqa: B008
    norms: Path | None = typer.Option(None, help="Human ratings: word, valence, arousal; or NRC-VAD's file."),  # noqa: B008
    bench_data: Path | None = typer.Option(None, help="A folder of emotion-vector-bench."),  # noqa: B008
    study: list[str] = typer.Option([], help="Only these; may be repeated."),  # noqa: B008
    seed: int = typer.Option(0, help="Of all draws."),
) -> None:
    """Geometry, reading, steering, preference and behaviour: a report with pictures, whatever comes out."""
    import emosteer as es
    from emosteer.emotions import read_stories
    from emosteer.emotions.ratings import read_ratings
    from emosteer.emotions.validation import STUDIES
    from emosteer.emotions.validation import validate as run

    console = Console(highlight=False, markup=False, soft_wrap=True)
    ratings = None if norms is None else read_ratings(norms)
    own = None if stories is None else read_stories(stories)
    loaded, tok = es.load(model)
    found = run(
        loaded,
        tok,
        out,
        stories=own,
        studies=study or STUDIES,
        quick=quick,
        ratings=ratings,
        bench_data=bench_data,
        seed=seed,
        say=lambda line: console.print(f"… {line}"),
    )
    for one in found:
        console.print(f"\n{one.title} ({one.seconds:.0f} s)")
        for line in one.findings:
            console.print(f"  - {line}")
    console.print(f"\nwritten to {out}/: report.html, report.md, numbers.json and pictures")
