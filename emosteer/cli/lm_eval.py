"""`emosteer lm-eval`: tasks of lm-evaluation-harness over strengths, with one model loaded once."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from . import inputs

_PROGRAM = "A concept and numbers, like calm=0.05,0.1: a program each; several times for several concepts."


def lm_eval(
    tasks: str = typer.Option(..., help="Names of the harness's tasks, joined by commas."),
    model: str = typer.Option("smollm2", help=inputs.MODEL),
    bank: Path = typer.Option(None, help=inputs.BANK),  # noqa: B008
    add: list[str] = typer.Option([], help=_PROGRAM),  # noqa: B008
    cap: list[str] = typer.Option([], help="The same with an upper bound, like angry=0."),  # noqa: B008
    floor: list[str] = typer.Option([], help="The same with a lower bound."),  # noqa: B008
    hold: list[str] = typer.Option([], help="The same with a value to hold."),  # noqa: B008
    ablate: list[str] = typer.Option([], help="A concept to take out."),  # noqa: B008
    random: int = typer.Option(0, help="Random directions that take every strength as well, as a control."),
    layers: str = typer.Option("middle", help=inputs.LAYERS),
    limit: float = typer.Option(None, help="Examples of each task, or a fraction of them."),
    num_fewshot: int = typer.Option(None, help="Examples in the context."),
    batch_size: int = typer.Option(8, help="Requests in a batch."),
    chat: bool = typer.Option(False, "--chat", help="Put requests into the model's chat template."),
    include_path: Path = typer.Option(None, help="A folder of further tasks, as YAML."),  # noqa: B008
    device: str = typer.Option("cpu", help="Where the model runs, such as cuda."),
    out: Path = typer.Option(None, help="Write the scores here, as .csv or .json."),  # noqa: B008
) -> None:
    """One table of lm-evaluation-harness's scores over strengths; the first column is unsteered."""
    if out is not None and out.suffix not in (".csv", ".json"):
        raise ValueError(f"--out must end in .csv or .json, got {str(out)!r}")
    import emosteer as es
    from emosteer.harnesses.lm_eval import SteeredLM, evaluate
    from emosteer.harnesses.lm_eval.table import grid
    from emosteer.sweep.plan import RANDOM, UNSTEERED, arms_of, with_controls

    programs = [es.ablate(name) for name in ablate]
    for kind, options in (("add", add), ("cap", cap), ("floor", floor), ("hold", hold)):
        programs += [inputs.program(**{kind: [one]}) for one in _each(kind, options)]
    if bank is None:
        loaded, tok, found = inputs.model_and_bank(
            model, None, [name for one in programs for name in one.names]
        )
        loaded = loaded.to(device)
    else:
        loaded, tok = es.load(model, device=device)
        found = es.Bank.load(bank)
    arms = arms_of(found, programs, ()) if programs else []
    controls = [UNSTEERED, *([RANDOM] if random else [])]
    found, arms = with_controls(found, arms, controls, max(random, 1))
    lm = SteeredLM(loaded, found, tokenizer=tok, layers=inputs.layers(layers), batch_size=batch_size)
    given: dict[str, Any] = dict(limit=limit, num_fewshot=num_fewshot, apply_chat_template=chat)
    if include_path is not None:
        from lm_eval.tasks import TaskManager

        given["task_manager"] = TaskManager(include_path=str(include_path))
    scores = evaluate(lm, tasks.split(","), arms, **given)
    _show(*grid(scores))
    if out is not None:
        _write(out, [score.record() for score in scores])


def _each(kind: str, options: Sequence[str]) -> list[str]:
    """`calm=0.05,0.1` → `calm=0.05` and `calm=0.1`."""
    found = []
    for option in options:
        name, equals, numbers = option.rpartition("=")
        if not equals:
            raise ValueError(f"--{kind} must be a concept and numbers, like calm=0.05,0.1; got {option!r}")
        found += [f"{name}={number}" for number in numbers.split(",")]
    return found


def _show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < 3 else "right")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _write(path: Path, records: Sequence[dict[str, Any]]) -> None:
    if path.suffix == ".json":
        found = [{k: None if v != v else v for k, v in record.items()} for record in records]
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
