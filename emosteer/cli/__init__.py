"""The command `emosteer`; each command's work is imported when it runs."""

from __future__ import annotations

from pathlib import Path

import typer

from . import bench, corpus, sweep
from .convert import convert
from .extract import extract
from .lm_eval import lm_eval
from .read import read
from .serve import serve
from .steer import steer
from .validate import validate

INTERRUPTED = 130  # typer's exit code after ctrl-c: 128 and the number of the signal

app = typer.Typer(help="Read and steer the residual stream of language models.", no_args_is_help=True)
app.add_typer(bench.app, name="bench")
app.add_typer(corpus.app, name="corpus")
app.add_typer(sweep.app, name="sweep")


@app.command()
def demo(out: Path = typer.Option(Path("out/demo"), help="Where the pictures and numbers go.")) -> None:  # noqa: B008
    """Extract emotion directions from the built-in model, steer it with them, and draw the circumplex."""
    from .demo import run

    run(out)


@app.command()
def doctor(
    architectures: bool = typer.Option(
        False, "--architectures", help="Try every architecture of transformers."
    ),
    out: Path = typer.Option(None, help="With --architectures: the page to write."),  # noqa: B008
    seconds: float = typer.Option(30.0, help="With --architectures: the most that one may take."),
) -> None:
    """Say what was built, what runs where, and why not the rest."""
    from .doctor import run, survey

    if architectures:
        survey(out, seconds)
    else:
        run()


app.command("convert")(convert)
app.command("extract")(extract)
app.command("lm-eval")(lm_eval)
app.command("read")(read)
app.command("serve", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command("steer")(steer)
app.command("validate")(validate)


def main() -> None:
    """The entry point: an error of the user's is one line and exit code 2, an interruption one and 130."""
    import sys

    from emosteer.models.quiet import quiet_imports

    try:
        with quiet_imports():
            app()
    except (ValueError, OSError, ImportError) as error:
        print(f"emosteer: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            print("emosteer: interrupted", file=sys.stderr)
        raise
