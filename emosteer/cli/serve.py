"""`emosteer serve`: vLLM's own server, with banks to steer its requests with."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import typer

from . import inputs


def serve(
    context: typer.Context,
    model: str = typer.Argument(..., help=inputs.MODEL),
    bank: list[str] = typer.Option(..., help="A bank file, or NAME=FILE; may be repeated."),  # noqa: B008
    default: str = typer.Option(None, help='What requests do that do not say: "calm +0.05; desperate <= 0".'),
    adapter_default: list[str] = typer.Option(  # noqa: B008
        [], help="ADAPTER=PROGRAM: the same for requests of a LoRA adapter; may be repeated."
    ),
    layers: str = typer.Option("all", help=f"Where requests may steer: {inputs.LAYERS}"),
    readable: str = typer.Option(
        None, help=f"Where requests may be read: {inputs.LAYERS}; nowhere unless given."
    ),
    slots: int = typer.Option(4, min=1, max=64, help="Directions that one program may combine."),
) -> None:
    """Serve a model with vLLM (OpenAI's protocol); requests ask for programs in `vllm_xargs`.

    Further options are those of vLLM's server: --port 8000 --dtype float32 ...
    """
    from emosteer.models.loading import folder_of
    from emosteer.vllm.serving import arguments, environment, require

    require()
    settings = {"banks": inputs.named_files(bank), "default": default, "layers": layers, "slots": slots}
    settings |= {"readable": readable, "adapters": adapter_programs(adapter_default)}
    folder = folder_of(model)
    command = [sys.executable, *arguments(folder, model, settings, context.args)]
    os.environ.update(environment())
    typer.echo(f"emosteer: {json.dumps(settings)}", err=True)
    os.execv(sys.executable, command)  # the server gets the signals that this command would


def adapter_programs(values: Sequence[str]) -> dict[str, str]:
    """Adapter → program, of options like `polite=calm +0.05`.

    Raises:
        ValueError: an option without a name, or one that comes twice.
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, program = value.partition("=")
        if not equals or not name.strip() or not program.strip():
            raise ValueError(
                f"--adapter-default must be an adapter and a program, like polite=calm +0.05; got {value!r}"
            )
        if name in found:
            raise ValueError(f"--adapter-default: {name!r} comes twice")
        found[name] = program
    return found
