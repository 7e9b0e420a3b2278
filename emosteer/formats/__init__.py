"""Files of steering vectors, ours and other libraries': one module a format, found by suffix and content.

A module has `LABEL`, `ONE_CONCEPT` (whether it holds one vector a layer), `read(path)` and
`write(vectors, path, **options)`. Nothing here knows `Bank`; what passes is `Vectors`.
"""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors

from .memory import of_object
from .vectors import Vectors

__all__ = ["MODULES", "Vectors", "format_for", "module", "not_carried", "of_object", "read", "write"]

# format -> module
MODULES = {
    "emosteer": "native",
    "gguf": "gguf",
    "svec": "svec",
    "npz": "npz",
    "easysteer": "easysteer",
    "steering_vectors": "steering_vectors",
    "lm_eval": "lm_eval",
    "hotwire": "hotwire",
    "steering_lite": "steering_lite",
    "saklas": "saklas",
}
_WHOLE = ("emosteer", "npz")
_TORCH = ("lm_eval", "hotwire", "steering_vectors")
_SUFFIXES = {".gguf": "gguf", ".svec": "svec", ".npz": "npz", ".json": "easysteer"}


def module(format: str) -> ModuleType:
    """The module of a format."""
    if format not in MODULES:
        raise ValueError(f"format must be one of {', '.join(MODULES)}, got {format!r}")
    return import_module(f"{__name__}.{MODULES[format]}")


def read(
    path: str | os.PathLike[str],
    format: str | None = None,
    *,
    layer_offset: int | None = None,
    depth: int | None = None,
) -> Vectors:
    """What a file says.

    Args:
        path: the file.
        format: a key of `MODULES`; found by suffix and content if None.
        layer_offset: the file's layer `l` is our layer `l + layer_offset`: −1 for files that count
            `hidden_states`, whose 0 (the embeddings) is left out. None: as the format counts, or as
            `depth` decides where it does not say.
        depth: the model's number of blocks; a file with other layers is refused.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown format, or what is wrong with the file, by its name.
    """
    path = Path(path)
    if not path.is_file():
        why = ": it is a folder" if path.is_dir() else ""
        raise FileNotFoundError(f"no bank at {path}{why}")
    label = "file of steering vectors"
    try:
        chosen = module(format or _format_of(path))
        label = chosen.LABEL
        if chosen.__name__.endswith(".hotwire"):
            vectors = chosen.read(path, layer_offset=layer_offset, depth=depth, named=format is not None)
        else:
            vectors = chosen.read(path).moved(layer_offset or 0)
        beyond = [] if depth is None else [l for l in vectors.directions if l >= depth]
        if depth is not None and beyond:
            raise ValueError(
                f"it has layers {beyond[:8]}, the model has blocks 0 to {depth - 1}; if it counts hidden_states, the "
                f"embeddings first, pass layer_offset=-1"
            )
        return vectors
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a valid {label}: {_short(error)}") from None


def write(
    vectors: Vectors, path: str | os.PathLike[str], format: str | None = None, **options: Any
) -> list[Path]:
    """Write a file; `{concept}` in the path stands for a file for each concept.

    Args:
        vectors: what to write.
        path: the file.
        format: a key of `MODULES`; by suffix if None, ours where that says nothing.
        options: the format's own, see its `write`.

    Returns:
        the files written.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: what the format cannot hold, and what to do about it.
    """
    path = Path(path)
    name = format or format_for(path)
    chosen = module(name)
    known = [key for key in inspect.signature(chosen.write).parameters if key not in ("vectors", "path")]
    for option in options:
        if option not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            raise ValueError(f"the format {name} {takes}; got {option!r}")
    if "{concept}" in path.name:
        return [
            written
            for concept in vectors.names
            for written in write(vectors.only(concept), _for_concept(path, concept), name, **options)
        ]
    if chosen.ONE_CONCEPT and len(vectors.names) > 1:
        raise ValueError(
            f"a {chosen.LABEL} holds one concept, these are {len(vectors.names)}; pick one with "
            f"bank.subset({vectors.names[0]!r}), or write {path.stem}.{{concept}}{path.suffix} for a file each"
        )
    chosen.write(vectors, path, **options)
    return [path]


def not_carried(vectors: Vectors, format: str) -> list[str]:
    """The fields that these vectors have and a file of this format has no place for."""
    if format in _WHOLE:
        return []
    return [name for name in ("mean", "projection_mean", "projection_std") if getattr(vectors, name)]


def _short(error: Exception) -> str:
    """What a stranger's file put into a message does not fill the screen."""
    text = str(error)
    return text if len(text) <= 600 else f"{text[:600]}..."


def _for_concept(path: Path, concept: str) -> Path:
    if any(sign in concept for sign in ("/", "\\", "\0")) or concept.startswith("."):
        raise ValueError(f"the concept {concept!r} cannot be part of a file's name; rename it first")
    return path.with_name(path.name.replace("{concept}", concept))


def format_for(path: Path) -> str:
    """The format that a suffix stands for when writing."""
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth", ".bin"):
        raise ValueError(
            f"{path.name}: several libraries use {suffix}; say format= one of {', '.join(_TORCH)}"
        )
    return _SUFFIXES.get(suffix, "emosteer")


def _format_of(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if suffix in (".pt", ".pth", ".bin"):
        from . import steering_vectors, torch_file

        content, _ = torch_file.read(path, steering_vectors.KNOWN)
        for name in _TORCH:
            if module(name).matches(content):
                return name
        raise ValueError(
            f"it holds {type(content).__name__}, which is none of {', '.join(_TORCH)}: a tensor (layers, hidden), "
            "a dict of hookpoints with a steering_vector, or vectors by layer"
        )
    return _of_safetensors(path)


def _of_safetensors(path: Path) -> str:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata, keys = file.metadata() or {}, list(file.keys())
    except safetensors.SafetensorError:
        return "emosteer"  # which says what is wrong
    if "format" in metadata:
        return "emosteer"
    return next(
        (name for name in ("steering_lite", "saklas") if module(name).matches(keys, metadata)), "emosteer"
    )
