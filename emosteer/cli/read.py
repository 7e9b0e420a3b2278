"""`emosteer read`: which concepts a text or a chat expresses, token by token."""

from __future__ import annotations

from pathlib import Path

import typer

from . import inputs


def read(
    text: str = typer.Argument(None, help='The text; "-" reads standard input.'),
    file: Path = typer.Option(  # noqa: B008
        None,
        exists=True,
        dir_okay=False,
        help='A text file, or a .json file with a chat: [{"role": …, "content": …}].',
    ),
    concept: list[str] = typer.Option([], help="Colour the text by these; the strongest by default."),  # noqa: B008
    top: int = typer.Option(10, min=1, help="How many concepts the table shows."),
    layers: str = typer.Option(None, help=f"{inputs.LAYERS} Two thirds of the depth by default."),
    html: Path = typer.Option(None, help="Write a page with every concept here."),  # noqa: B008
    plot: Path = typer.Option(None, help="Write a picture here."),  # noqa: B008
    model: str = typer.Option("smollm2", help=inputs.MODEL),
    bank: Path = typer.Option(None, help=inputs.BANK),  # noqa: B008
    json_: bool = typer.Option(False, "--json", help="Print tokens and scores as JSON instead."),
) -> None:
    """Read the concepts that a model's residual stream expresses in a text."""
    import json

    from rich.console import Console

    import emosteer as es

    what = inputs.text_or_chat(text, file)
    at = None if layers is None else inputs.layers(layers)
    loaded, tok, directions = inputs.model_and_bank(model, bank, concept)
    unit = "z" if directions.projection_std else "projection"
    reading = es.read(loaded, tok, what, directions, layers=at, unit=unit)
    shown = concept or None
    for name in concept:
        reading.of(name)
    if html is not None:
        reading.to_html(html)
    if plot is not None:
        reading.plot(plot, shown)
    if json_:
        found = {
            "tokens": reading.tokens,
            "names": reading.names,
            "unit": unit,
            "scores": reading.scores.tolist(),
        }
        typer.echo(json.dumps(found))
        return
    console = Console()
    console.print(reading.table(top))
    console.print(reading.heatmap(shown))
    for path in (html, plot):
        if path is not None:
            console.print(f"written: {path}")
