"""`emosteer corpus`: check a corpus of stories, or have a model write more."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

app = typer.Typer(help="Stories to take directions from: check them, or have a model write more.")

FILE = typer.Argument(..., help="One JSON object a line: emotion, topic, person, text.", show_default=False)


@app.command()
def check(
    file: Path = FILE,
    shipped: bool = typer.Option(False, help="Hold it to the rules of the corpus that comes along."),
    words: Path | None = typer.Option(None, help="The emotions allowed and required, one a line."),  # noqa: B008
    least: int = typer.Option(10, help="Words of a text, at least."),
    most: int = typer.Option(1000, help="Words of a text, at most."),
    same_topics: bool = typer.Option(False, help="Every emotion must have a story of every topic, once."),
    leaks: bool = typer.Option(True, help="List emotion words in stories of other emotions."),
) -> None:
    """Say what is wrong with a corpus, line by line; exit code 1 if anything is.

    Then the lexical leaks: how often stories of one emotion use the word of another.
    """
    from emosteer.emotions.check import SHIPPED, Rules, report

    rules = SHIPPED
    if not shipped:
        only = tuple(words.read_text(encoding="utf-8").split()) if words is not None else None
        rules = Rules(only, least, most, topics_match=same_topics)
    found, other = report(file, rules)
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for line in found:
        console.print(line)
    console.print(f"{len(found)} problems" if found else "nothing wrong")
    if leaks:
        console.print(f"{len(other)} emotions' words in stories of others")
        for line in other:
            console.print(f"  {line}")
    raise typer.Exit(1 if found else 0)


@app.command()
def generate(
    file: Path = FILE,
    topics: Path = typer.Option(..., help="Situations, one a line; the same for every emotion."),  # noqa: B008
    model: str = typer.Option("smollm2", help="What writes: a Hub id, a folder, a GGUF file, or smollm2."),
    words: Path | None = typer.Option(None, help="The emotions, one a line; the 171 by default."),  # noqa: B008
    per_topic: int = typer.Option(1, help="Stories for each emotion and topic."),
    tries: int = typer.Option(4, help="How often a story is asked for at most."),
    batch_rows: int = typer.Option(16, help="Stories asked for at once."),
    max_new_tokens: int = typer.Option(160, help="Of a story."),
    temperature: float = typer.Option(0.9, help="Of the sampling."),
    seed: int = typer.Option(0, help="Of the sampling."),
) -> None:
    """Have a model write stories of every emotion in every situation; run again to go on.

    Texts that name their emotion, are too short, loop or repeat another are asked for again.
    """
    import emosteer as es
    from emosteer.emotions.generation import generate as run

    situations = [line.strip() for line in topics.read_text(encoding="utf-8").splitlines() if line.strip()]
    emotions = words.read_text(encoding="utf-8").split() if words is not None else es.emotions.WORDS
    writer, tok = es.load(model)
    done = run(
        writer,
        tok,
        file,
        situations,
        emotions=emotions,
        per_topic=per_topic,
        tries=tries,
        batch_rows=batch_rows,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"{done.written} stories written, {done.there} were there")
    for reason, n in done.refused.most_common():
        console.print(f"  thrown away: {n}, {reason}")
    if done.missing:
        console.print(
            f"{len(done.missing)} emotions and topics still lack a story; run again with another seed"
        )
        raise typer.Exit(1)
