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
    layer_offset: int = typer.Option(
        None, "--layer-offset", help="Added to the source's layers; -1 if it counts hidden_states."
    ),
    depth: int = typer.Option(None, help="The model's blocks: decides how a source counts, refuses others."),
    n_layers: int = typer.Option(None, help="hotwire: the model's number of blocks."),
) -> None:
    """Convert a file of steering vectors; between other libraries' formats no bit of a vector changes."""
    from emosteer import formats
    from emosteer.bank import Bank

    vectors = formats.read(source, from_, layer_offset=layer_offset, depth=depth)
    if name is not None:
        vectors = vectors.named([name])
    bank = Bank(**vars(vectors))  # what no bank can hold is refused before anything is written
    chosen = to or formats.format_for(target)
    if chosen == "emosteer":
        vectors = bank._vectors()  # unit rows with their lengths, as our file has them
    if concept is not None:
        vectors = vectors.only(concept)
    given = dict(
        length=length, layer_0=layer_0, model_type=model_type, hookpoint=hookpoint, n_layers=n_layers
    )
    options = {option: value for option, value in given.items() if value is not None}
    written = formats.write(vectors, target, chosen, **options)
    typer.echo(f"{source}: {bank!r}")
    for path in written:
        typer.echo(f"written: {path} ({formats.module(chosen).LABEL})")
    if lost := formats.not_carried(vectors, chosen):
        typer.echo(f"not carried by this format: {', '.join(lost)}")
