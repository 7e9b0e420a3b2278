"""`emosteer steer`: a prompt continued without and with a program, in one batch."""

from __future__ import annotations

from pathlib import Path

import typer

from . import inputs

_VALUES = "CONCEPT=NUMBER, may be repeated."


def steer(
    prompt: str = typer.Argument(..., help="The text to continue."),
    add: list[str] = typer.Option([], help=f"Push towards: {_VALUES}"),  # noqa: B008
    cap: list[str] = typer.Option([], help=f"Hold the projection at or below: {_VALUES}"),  # noqa: B008
    floor: list[str] = typer.Option([], help=f"Hold it at or above: {_VALUES}"),  # noqa: B008
    hold: list[str] = typer.Option([], help=f"Set it to: {_VALUES}"),  # noqa: B008
    rotate: list[str] = typer.Option([], help=f"Turn towards by degrees: {_VALUES}"),  # noqa: B008
    ablate: list[str] = typer.Option([], help="Take out: CONCEPT, may be repeated."),  # noqa: B008
    program: list[str] = typer.Option([], help='Several at once: "calm +0.05; desperate <= 0".'),  # noqa: B008
    chat: bool = typer.Option(False, help="The prompt is a user's message."),
    tokens: int = typer.Option(40, min=1, help="How many to generate."),
    temperature: float = typer.Option(0.0, min=0.0, help="0: greedy."),
    seed: int = typer.Option(0, help="Of the sampling."),
    layers: str = typer.Option("middle", help=inputs.LAYERS),
    positions: str = typer.Option("all", help=inputs.POSITIONS),
    model: str = typer.Option("smollm2", help=inputs.MODEL),
    bank: Path = typer.Option(None, help=inputs.BANK),  # noqa: B008
    json_: bool = typer.Option(False, "--json", help="Print JSON instead of a table."),
) -> None:
    """Continue a prompt without and with steering; numbers are fractions of the mean residual norm."""
    import json

    import torch
    from rich.console import Console
    from rich.table import Table

    import emosteer as es

    asked = inputs.program(
        program=program, add=add, cap=cap, floor=floor, hold=hold, rotate=rotate, ablate=ablate
    )
    if asked is None:
        raise ValueError(
            'give a program: --program "calm +0.1", --add calm=0.1, --cap desperate=0, --ablate sad, …'
        )
    at, where = inputs.layers(layers), inputs.positions(positions)
    loaded, tok, directions = inputs.model_and_bank(model, bank, asked.names)
    text = prompt
    if chat:
        text = tok.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    found = tok([text, text], return_tensors="pt", add_special_tokens=not chat)
    sampling = {"do_sample": temperature > 0, **({"temperature": temperature} if temperature > 0 else {})}
    torch.manual_seed(seed)
    with es.steer(loaded, directions, [None, asked], layers=at, positions=where):
        out = loaded.generate(
            **found.to(loaded.device), max_new_tokens=tokens, pad_token_id=tok.pad_token_id, **sampling
        )
    new = [tok.decode(row[found["input_ids"].shape[1] :], skip_special_tokens=True) for row in out]
    if json_:
        typer.echo(
            json.dumps({"prompt": prompt, "program": str(asked), "unsteered": new[0], "steered": new[1]})
        )
        return
    table = Table(title=prompt, show_lines=True)
    table.add_column("program")
    table.add_column("continuation")
    table.add_row("unsteered", new[0])
    table.add_row(str(asked), new[1])
    Console().print(table)
