"""`emosteer bench static | gpu`."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import typer

app = typer.Typer(help="Predicted and measured speed of the GPU kernels.", no_args_is_help=True)


@app.command()
def static(
    out: Path = typer.Option(Path("bench/results"), help="Where static.csv and static.md go."),  # noqa: B008
    width: list[int] = typer.Option([], help="Only these widths D (may be repeated)."),  # noqa: B008
    dtype: list[str] = typer.Option([], help="Only these dtypes: bfloat16, float16, float32."),  # noqa: B008
    device: list[str] = typer.Option([], help="Only these GPUs: A100, H100, H200, B200, MI300X."),  # noqa: B008
    all_variants: bool = typer.Option(
        False, "--all", help="Instead, read the machine code of every variant: machine_code.csv and .md."
    ),
) -> None:
    """Compile every kernel without a GPU; print and write what it needs and how fast it should be."""
    from emosteer.benchmarks import static

    if all_variants:
        return _every_variant(out)

    if unknown := set(dtype) - set(static.DTYPES):
        raise ValueError(f"--dtype must be of {', '.join(static.DTYPES)}, got {', '.join(sorted(unknown))}")
    if unknown_widths := set(width) - set(static.WIDTHS):
        raise ValueError(f"--width must be of {static.WIDTHS}, got {sorted(unknown_widths)}")
    known = {known.name: known for known in static.DEVICES}
    if unknown := set(device) - set(known):
        raise ValueError(f"--device must be of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    found = static.rows(
        tuple(width) or static.WIDTHS,
        tuple(dtype) or tuple(static.DTYPES),
        tuple(known[name] for name in device) or static.DEVICES,
    )
    paths = static.write(out, found)
    print(static.markdown(found))
    print(f"written: {', '.join(map(str, paths))}")


def _every_variant(out: Path) -> None:
    from emosteer.benchmarks import machine_code

    began = perf_counter()
    found = machine_code.rows()
    table, page = machine_code.write(out, found, perf_counter() - began)
    print(machine_code.summary(found))
    print(f"written: {table}, {page}")
    if spilling := machine_code.spilling(found):
        print(f"{len(spilling)} variants spill registers to memory, see {table}")
        raise typer.Exit(1)


@app.command()
def gpu(
    out: Path = typer.Option(Path("bench/results"), help="Where gpu.csv, gpu.json and gpu.md go."),  # noqa: B008
    dry_run: bool = typer.Option(False, "--dry-run", help="Run every case once, small, on the CPU."),
    case: str = typer.Option("", help="Only cases whose name contains this."),
    minutes: float = typer.Option(None, help="Begin no case after so many minutes."),
) -> None:
    """Measure the kernels on this machine's GPU against what there is in plain torch, libraries and vLLM."""
    from emosteer.benchmarks.gpu import run

    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes must be more than 0, got {minutes:g}")
    report = run(None if dry_run else out, dry_run=dry_run, containing=case, minutes=minutes)
    for row in report.rows:
        if row["status"] != "ok":
            print(f"{row['case']}, {row['side']}: {row['status']}")
    if dry_run:
        print("a dry run measures nothing and writes nothing")
    for path in report.write():
        print(f"written: {path}")
    print(report.summary())
