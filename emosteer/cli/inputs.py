"""What several commands read from their options: a model with its bank, programs, layers, a chat."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODEL = "smollm2, a folder, a GGUF file, or a model of the Hub."
BANK = "A bank file; by default the shipped emotions, extracted from the model once."
LAYERS = "middle, all, 14, 12-21, 3,7,11, or a fraction of the depth: 0.66."
POSITIONS = "all, prompt, generated, a slice (-1:) or a mask over positions (mask:0110)."


def model_and_bank(model: str, bank: Path | None, concepts: Sequence[str] = ()) -> tuple[Any, Any, Any]:
    """`(model, tokenizer, bank)`.

    Raises:
        ValueError: a concept that the shipped emotions lack, before a minute goes into extracting them.
    """
    import emosteer as es
    from emosteer.bank import position
    from emosteer.models.blocks import find_decoder

    if bank is None:
        shipped = list(dict.fromkeys(story.emotion for story in es.emotions.corpus()))
        for concept in concepts:
            position(shipped, concept)
    loaded, tok = es.load(model)
    if bank is not None:
        return loaded, tok, es.Bank.load(bank, depth=find_decoder(loaded).depth)
    return loaded, tok, es.emotions.bank(loaded, tok)


def layers(text: str) -> Any:
    """What `es.steer` takes, from what a shell can say.

    Raises:
        ValueError: what came and what is understood.
    """
    from emosteer import spelling

    try:
        return spelling.layers(text)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def positions(text: str) -> Any:
    """The option `--positions` as `es.steer` takes it."""
    from emosteer import spelling

    try:
        return spelling.positions(text)
    except ValueError as error:
        raise ValueError(f"--{error}") from None


def named_files(values: Sequence[str]) -> dict[str, str]:
    """Name → file, of options like `emotions=bank.safetensors`, or a file that gives its own name.

    Raises:
        ValueError: a name that comes twice.
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, file = value.partition("=")
        if not equals or Path(value).is_file():  # a file may have "=" in its path
            name, file = Path(value).stem, value
        if name in found:
            raise ValueError(f"--bank: two banks are called {name!r}; give them names: --bank first={file}")
        found[name] = file
    return found


def program(**options: Sequence[str]) -> Any:
    """The sum of programs given as `name=number`, by kind, and as texts (`emosteer.spelling`) under the kind `program`;
    None where there is none.

    Raises:
        ValueError: the option and what came.
    """
    import emosteer as es
    from emosteer import spelling

    total = None
    for kind, values in options.items():
        for value in values:
            name, equals, number = value.rpartition("=")
            if kind == "program":
                one = spelling.program(value)
            elif kind == "ablate":
                one = es.ablate(value)
            elif not equals or not name:
                raise ValueError(f"--{kind} must be a concept and a number, like calm=0.1; got {value!r}")
            else:
                try:
                    one = getattr(es, kind)(name, float(number))
                except ValueError as error:
                    raise ValueError(f"--{kind} {value!r}: {error}") from None
            total = one if total is None else total + one
    return total


def text_or_chat(text: str | None, file: Path | None) -> Any:
    """A text from the argument, a file or standard input; a chat where a `.json` file holds messages.

    Raises:
        ValueError: none or both came.
    """
    if (text is None) == (file is None):
        raise ValueError('give the text, "-" for standard input, or --file; one of them')
    if file is not None:
        content = file.read_text(encoding="utf-8")
        if file.suffix != ".json":
            return content
        try:
            return json.loads(content)
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from None
    return sys.stdin.read() if text == "-" else text
