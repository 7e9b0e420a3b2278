"""A sweep as a YAML file or JSON: what may stand in it, and errors that name the key's path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emosteer import spelling

from ..metrics import KINDS, Metric
from ..plan.generation import Generation
from .entries import DefinitionError, called, metric_of, program_of, shown, wrong

# Key → what it is, for the message.
KEYS = {
    "model": "a name for es.load: smollm2, a folder, a GGUF file or a Hub id",
    "revision": "a revision of a Hub model",
    "dtype": "float32, bfloat16 or float16",
    "device": "where the model runs, such as cpu or cuda",
    "bank": "the path of a bank file",
    "prompts": "a list of texts, chats or {label, text | messages}; or the path of a file with a text a line",
    "programs": "a list of concepts, and of programs such as {cap: {name: angry, high: 0.0}}; or all",
    "strengths": "a number or a list of numbers",
    "layers": "a layer set or a list of them: middle, all, a block, a fraction, or a list of them",
    "positions": "one or a list of all, prompt, generated, slices such as '-1:' and masks such as mask:0110",
    "seeds": "an integer or a list of integers",
    "metrics": f"a list of metrics: {', '.join(sorted(KINDS))}",
    "generation": "max_new_tokens, temperature, top_k, top_p",
    "controls": "a list of unsteered and random",
    "random_directions": "an integer of at least 1",
    "control_seed": "an integer",
    "exclude": "a list of coordinates to leave out, such as {concept: calm, strength: 0.1}",
    "relative": "true or false",
    "batch_tokens": "an integer of at least 1",
    "batch_rows": "an integer of at least 1",
}
REQUIRED = ("bank", "prompts", "metrics")

# Types of plain values.
_PLAIN: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "revision": (str,),
    "dtype": (str,),
    "device": (str,),
    "bank": (str,),
    "relative": (bool,),
    "random_directions": (int,),
    "control_seed": (int,),
    "batch_tokens": (int,),
    "batch_rows": (int,),
}
_NUMBERS = {"strengths": (int, float), "seeds": (int,)}
COORDINATES = ("concept", "strength", "control", "prompt", "seed", "positions", "layers")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        FileNotFoundError, DefinitionError: not there, or not YAML of a mapping.
    """
    try:
        import yaml
    except ImportError:
        raise ImportError('YAML files need pyyaml: pip install "emosteer[sweep]"') from None
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DefinitionError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, Mapping):
        raise DefinitionError(f"{path}: expected keys such as bank, prompts and metrics, got {shown(found)}")
    return dict(found)


def keywords(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments of `Sweep` that a definition stands for.

    Args:
        given: what a YAML file holds.
        folder: what relative paths in it are relative to.

    Raises:
        DefinitionError: an unknown or missing key, or a value of the wrong kind; names its path.
    """
    for key in given:
        if key not in KEYS:
            raise DefinitionError(f"{key}: unknown key; known are {', '.join(KEYS)}")
    for key in REQUIRED:
        if key not in given:
            raise DefinitionError(f"{key}: missing; expected {KEYS[key]}")
    found: dict[str, Any] = {}
    for key, value in given.items():
        if key in _PLAIN:
            if not isinstance(value, _PLAIN[key]) or (isinstance(value, bool) and bool not in _PLAIN[key]):
                raise _wrong(key, value)
            found[key] = value
        elif key in _NUMBERS:
            found[key] = [
                _number(f"{key}[{i}]", v, _NUMBERS[key]) for i, v in enumerate(_several(key, value))
            ]
        else:
            found[key] = _READERS[key](value, folder)
    if "bank" in found and not Path(found["bank"]).is_absolute():
        found["bank"] = str(folder / found["bank"])
    return found


def _wrong(path: str, got: Any, expected: str | None = None) -> DefinitionError:
    return wrong(path, got, expected or KEYS[path.split("[")[0].split(".")[0]])


def _list(path: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise _wrong(path, value)
    if not value:
        raise DefinitionError(f"{path}: empty; expected {KEYS[path]}")
    return value


def _several(path: str, value: Any) -> Sequence[Any]:
    """A list of values, or one alone, as `Sweep` takes them."""
    return [value] if isinstance(value, (str, int, float)) else _list(path, value)


def _number(path: str, value: Any, types: tuple[type, ...]) -> Any:
    if isinstance(value, bool) or not isinstance(value, types):
        raise _wrong(path, value, "an integer" if types == (int,) else "a number")
    return value


def _prompts(value: Any, folder: Path) -> list[Any]:
    if isinstance(value, str):
        path = folder / value
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise DefinitionError(f"prompts: {path} cannot be read: {error.strerror}") from None
        return [line for line in lines if line.strip()]
    found = _list("prompts", value)
    for i, item in enumerate(found):
        if not isinstance(item, (str, list, Mapping)):
            raise _wrong(f"prompts[{i}]", item, "a text, a chat or {label, text | messages}")
        for j, message in enumerate(item if isinstance(item, list) else []):
            if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
                raise _wrong(f"prompts[{i}][{j}]", message, "{role, content}")
    return list(found)


def _programs(value: Any, _folder: Path) -> Any:
    if value == "all":
        return value
    return [
        item if isinstance(item, str) else program_of(f"programs[{i}]", item)
        for i, item in enumerate(_list("programs", value))
    ]


def _layers(value: Any, _folder: Path) -> list[Any]:
    for i, item in enumerate(values := _several("layers", value)):
        for j, one in enumerate(item if isinstance(item, list) else [item]):
            if isinstance(one, bool) or not isinstance(one, (str, int, float)):
                path = f"layers[{i}][{j}]" if isinstance(item, list) else f"layers[{i}]"
                raise _wrong(path, one, "middle, all, a block or a fraction of the depth")
    return list(values)


def _positions(value: Any, _folder: Path) -> list[str]:
    for i, item in enumerate(values := _several("positions", value)):
        if not isinstance(item, str):
            raise _wrong(
                f"positions[{i}]",
                item,
                "all, prompt, generated, a slice such as '-1:' or a mask such as mask:0110",
            )
        try:
            spelling.positions(item)
        except ValueError as error:
            raise DefinitionError(f"positions[{i}]: {error}") from None
    return list(values)


def _metrics(value: Any, _folder: Path) -> list[Metric]:
    return [metric_of(f"metrics[{i}]", item) for i, item in enumerate(_list("metrics", value))]


def _generation(value: Any, _folder: Path) -> Generation:
    if not isinstance(value, Mapping):
        raise _wrong("generation", value)
    return called("generation", Generation, value)


def _controls(value: Any, _folder: Path) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong("controls", value)
    return list(value)


def _exclude(value: Any, _folder: Path) -> list[Mapping[str, Any]]:
    for i, rule in enumerate(_list("exclude", value)):
        if not isinstance(rule, Mapping) or not rule:
            raise _wrong(f"exclude[{i}]", rule)
        for key in rule:
            if key not in COORDINATES:
                raise DefinitionError(f"exclude[{i}].{key}: unknown; known are {', '.join(COORDINATES)}")
    return list(value)


_READERS = {
    "prompts": _prompts,
    "programs": _programs,
    "layers": _layers,
    "positions": _positions,
    "metrics": _metrics,
    "generation": _generation,
    "controls": _controls,
    "exclude": _exclude,
}
