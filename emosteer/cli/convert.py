"""`emosteer convert`: a file of steering vectors from one library's format to another's."""

from __future__ import annotations

from pathlib import Path

import typer


def convert(
    source: Path = typer.Argument(..., help="The file to read."),  # noqa: B008
    target: Path = typer.Argument(..., help="The file to write; {concept} in its name: a file for each."),  # noqa: B008
    from_: str = typer.Option(None, "--from", help="The format of the source; found by itself."),
    to: str = typer.Option(None, "--to", help="The format of the target; by its suffix."),
    name: str = typer.Option(None, help="What to call the concept of a source that holds one."),
    concept: str = typer.Option(None, help="Write this concept only."),
    length: str = typer.Option(None, help="Of the vectors written: magnitude, unit or scale."),
    layer_0: str = typer.Option(None, "--layer-0", help="GGUF: refuse, drop or keep direction.0."),
    model_type: str = typer.Option(None, help="GGUF, .svec: the model's type, e.g. llama."),
    hookpoint: str = typer.Option(None, help='lm_eval: a block\'s name, e.g. "h.{layer}" for GPT-2.'),
    n_layers: int = typer.Option(None, help="hotwire: the model's number of blocks."),
) -> None:
    """Convert a file of steering vectors; between other libraries' formats no bit of a vector changes."""
    from emosteer import formats
    from emosteer.bank import Bank

    vectors = formats.read(source, from_)
    if name is not None:
        vectors = vectors.named([name])
    bank = Bank(**vars(vectors))  # what no bank can hold is refused before anything is written
    if concept is not None:
        vectors = vectors.only(concept)
    given = dict(
        length=length, layer_0=layer_0, model_type=model_type, hookpoint=hookpoint, n_layers=n_layers
    )
    chosen = to or formats.format_for(target)
    options = {option: value for option, value in given.items() if value is not None}
    written = formats.write(vectors, target, chosen, **options)
    typer.echo(f"{source}: {bank!r}")
    for path in written:
        typer.echo(f"written: {path} ({formats.module(chosen).LABEL})")
    if lost := formats.not_carried(vectors, chosen):
        typer.echo(f"not carried by this format: {', '.join(lost)}")
