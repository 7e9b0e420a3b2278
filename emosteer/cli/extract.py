"""`emosteer extract`: texts to a bank file."""

from __future__ import annotations

from pathlib import Path

import typer

from . import inputs


def extract(
    out: Path = typer.Argument(..., help="The bank file to write (.safetensors)."),  # noqa: B008
    stories: Path = typer.Option(  # noqa: B008
        None,
        exists=True,
        dir_okay=False,
        help="JSON lines with emotion, topic, person, text; the shipped corpus by default.",
    ),
    neutral: Path = typer.Option(  # noqa: B008
        None,
        exists=True,
        dir_okay=False,
        help="A text file, one neutral text a line; the shipped dialogues by default.",
    ),
    emotion: list[str] = typer.Option([], help="Only these; may be repeated."),  # noqa: B008
    layers: str = typer.Option("all", help=inputs.LAYERS),
    method: str = typer.Option("mean_difference", help="mean_difference or lda."),
    skip_tokens: int = typer.Option(50, min=0, help="Tokens at a text's beginning that do not count."),
    denoise: float = typer.Option(0.5, help="Share of the neutral texts' variance to take out."),
    batch_tokens: int = typer.Option(4096, min=1, help="Tokens of a batch at most."),
    model: str = typer.Option("smollm2", help=inputs.MODEL),
) -> None:
    """Extract directions from labelled texts; an interrupted run, started again, goes on where it was."""
    import emosteer as es

    at = inputs.layers(layers)
    found = es.emotions.corpus()
    if stories is not None:
        neutral_texts = found.neutral
        found = es.emotions.Corpus(es.emotions.read_stories(stories))
        found.neutral = neutral_texts
    if neutral is not None:
        found.neutral = tuple(
            line for line in neutral.read_text(encoding="utf-8").splitlines() if line.strip()
        )
    if emotion:
        found = found.only(emotion)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"the folder {out.parent} does not exist; make it first")
    loaded, tok = es.load(model)
    part = out.with_name(f"{out.name}.part")
    try:
        bank = es.extract(
            loaded,
            tok,
            found,
            layers=at,
            method=method,
            skip_tokens=skip_tokens,
            denoise=denoise,
            batch_tokens=batch_tokens,
            checkpoint=part,
        )
    except KeyboardInterrupt:
        kept = f"{part} keeps what was counted; the same command goes on from there"
        typer.echo(f"emosteer: stopped. {kept if part.exists() else 'Nothing was counted yet'}.", err=True)
        raise typer.Exit(130) from None
    bank.save(out)
    typer.echo(f"{out}: {bank!r}")
