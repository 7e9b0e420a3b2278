"""`emosteer sweep run | status | report | resume`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from emosteer.sweep import Sweep
    from emosteer.sweep.opened import Opened

app = typer.Typer(help="Large evaluations: concepts × strengths × prompts, resumable.", no_args_is_help=True)

FOLDER = typer.Argument(help="The sweep's folder: a local path or an fsspec URL.")
ENGINE = typer.Option("local", help="local, ray or vllm.")
RETRY = typer.Option(False, "--retry-failed", help="Run rows again that failed before.")
QUIET = typer.Option(False, "--quiet", help="Say nothing while running.")

# Of `--engine ray` only; the names are those of `Sweep.run`.
RAY: dict[str, Any] = {"rich_help_panel": "With --engine ray"}
WORKERS = typer.Option(None, "--num-workers", min=1, help="By default what the cluster has room for.", **RAY)
CPUS = typer.Option(None, "--cpus-per-worker", min=0, help="Also the threads of torch; 1 by default.", **RAY)
GPUS = typer.Option(None, "--gpus-per-worker", min=0, help="None by default; a fraction shares a GPU.", **RAY)
RESOURCE = typer.Option([], "--resource", help="A further one of each worker, like name=1; several.", **RAY)
ADDRESS = typer.Option(
    None,
    "--address",
    help="Of the cluster: host:port, ray://host:port or auto; by default RAY_ADDRESS, else this machine alone.",
    **RAY,
)
UNITS = typer.Option(
    None, "--units-per-task", min=1, help="Units that a worker gets at a time; by speed by default.", **RAY
)
IN_FLIGHT = typer.Option(None, "--in-flight", min=1, help="Tasks that a worker has at a time; 2.", **RAY)
VLLM = typer.Option(
    [],
    "--vllm",
    help="An argument of vllm.EngineArgs, like tensor_parallel_size=2; several. With ray each worker runs vLLM.",
    rich_help_panel="With --engine vllm or ray",
)


@app.command()
def run(
    definition: Path = typer.Argument(help="The YAML file that defines the sweep."),  # noqa: B008
    folder: str = FOLDER,
    engine: str = ENGINE,
    retry_failed: bool = RETRY,
    quiet: bool = QUIET,
    num_workers: int = WORKERS,
    cpus_per_worker: float = CPUS,
    gpus_per_worker: float = GPUS,
    resource: list[str] = RESOURCE,
    address: str = ADDRESS,
    units_per_task: int = UNITS,
    in_flight: int = IN_FLIGHT,
    vllm: list[str] = VLLM,
) -> None:
    """Run the sweep of a YAML file into a folder; what is there already is not run again."""
    from emosteer.sweep import Sweep

    of_ray = num_workers, cpus_per_worker, gpus_per_worker, resource, address, units_per_task, in_flight
    _run(lambda: Sweep.from_yaml(definition), folder, engine, retry_failed, quiet, of_ray, vllm)


@app.command()
def resume(
    folder: str = FOLDER,
    engine: str = ENGINE,
    retry_failed: bool = RETRY,
    quiet: bool = QUIET,
    num_workers: int = WORKERS,
    cpus_per_worker: float = CPUS,
    gpus_per_worker: float = GPUS,
    resource: list[str] = RESOURCE,
    address: str = ADDRESS,
    units_per_task: int = UNITS,
    in_flight: int = IN_FLIGHT,
    vllm: list[str] = VLLM,
) -> None:
    """Go on with the sweep of a folder, as its manifest defines it."""
    from emosteer.sweep import Sweep

    of_ray = num_workers, cpus_per_worker, gpus_per_worker, resource, address, units_per_task, in_flight
    _run(lambda: Sweep.resumed(folder), folder, engine, retry_failed, quiet, of_ray, vllm)


def _run(
    make: Callable[[], Sweep],
    folder: str,
    engine: str,
    retry_failed: bool,
    quiet: bool,
    of_ray: tuple[Any, ...],
    of_vllm: list[str],
) -> None:
    with _said():
        options = _of_ray(engine, *of_ray) | _of_vllm(engine, of_vllm)
        _state(make().run(folder, engine, retry_failed=retry_failed, progress=not quiet, **options))


@app.command()
def status(folder: str = FOLDER) -> None:
    """How far the sweep of a folder is; works while it is running."""
    from emosteer.sweep import Sweep

    with _said():
        _state(Sweep.open(folder))


@app.command()
def report(
    folder: str = FOLDER,
    csv: Path = typer.Option(None, help="Write the summary as CSV as well."),  # noqa: B008
    out: Path = typer.Option(  # noqa: B008
        None, help="Write dose-response curves here: report.html, pictures, curves.csv, failures.csv."
    ),
) -> None:
    """Means of each metric by concept and strength, with the controls."""
    from emosteer.sweep import Sweep

    with _said():
        found = Sweep.open(folder)
        summary = found.summary()
        _print(summary)
        if csv is not None:
            from pyarrow import csv as writer

            writer.write_csv(summary, csv)
        if out is not None:
            for path in found.report().write(out):
                print(path)


def _of_ray(
    engine: str,
    num_workers: int | None,
    cpus_per_worker: float | None,
    gpus_per_worker: float | None,
    resource: Sequence[str],
    address: str | None,
    units_per_task: int | None,
    in_flight: int | None,
) -> dict[str, Any]:
    """Those of Ray's options that were given.

    Raises:
        ValueError: another engine, or a resource that is no name and number.
    """
    resources: dict[str, float] = {}
    for one in resource:
        name, equals, amount = one.rpartition("=")
        try:
            resources[name] = float(amount)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise ValueError(f"--resource must be a name and a number, like accelerator=1; got {one!r}")
    given = dict(
        num_workers=num_workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        resources=resources or None,
        address=address,
        units_per_task=units_per_task,
        in_flight=in_flight,
    )
    found = {name: value for name, value in given.items() if value is not None}
    if found and engine != "ray":
        flag = "--resource" if "resources" in found else "--" + next(iter(found)).replace("_", "-")
        raise ValueError(
            f"{flag} is for --engine ray, the engine is {engine!r}; add --engine ray or leave it out"
        )
    return found


def _of_vllm(engine: str, given: Sequence[str]) -> dict[str, Any]:
    """Arguments of vLLM's engine, their values read as YAML; with Ray, of each worker's.

    Raises:
        ValueError: another engine, or no name and value.
    """
    import yaml

    if given and engine not in ("vllm", "ray"):
        raise ValueError(
            f"--vllm is for --engine vllm or ray, the engine is {engine!r}; add --engine vllm or leave it out"
        )
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--vllm must be a name and a value, like tensor_parallel_size=2; got {one!r}")
        found[name] = yaml.safe_load(value)
    return {"vllm": found} if found and engine == "ray" else found


def _state(found: Opened) -> None:
    state = found.status()
    print(
        f"{found.store}: {state.done:,} of {state.units:,} units done, {state.rows:,} rows, {state.failed:,} failed"
    )
    for why, count in state.reasons:
        print(f"  {count:,} × {why}")
    for name in state.set_aside:
        print(
            f"  left out: {name} is no whole part; run or resume the sweep to set it aside and run its units again"
        )


def _print(summary: Any) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    shown: dict[str, Callable[[Any], str]] = {
        "metric": str,
        "control": str,
        "concept": str,
        "strength": lambda value: f"{value:g}" if value == value else "",
        "layers": str,
        "positions": str,
        "mean": lambda value: f"{value:.4g}",
        "standard_error": lambda value: f"{value:.2g}" if value is not None and value == value else "",
        "units": str,
    }
    for name in shown:
        table.add_column(name.replace("_", " "), justify="left" if shown[name] is str else "right")
    for row in summary.to_pylist():
        table.add_row(*(show(row[name]) for name, show in shown.items()))
    Console().print(table)


@contextmanager
def _said() -> Iterator[None]:
    """What a folder says is for the user to read: one line and exit code 2, no traceback."""
    import sys

    from emosteer.sweep import FolderError

    try:
        yield
    except KeyboardInterrupt:
        print("emosteer: stopped; what was reported done is kept, resume goes on from there", file=sys.stderr)
        raise typer.Exit(130) from None
    except (FolderError, OSError) as error:
        print(f"emosteer: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
