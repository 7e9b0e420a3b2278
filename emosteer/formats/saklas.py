"""saklas's `Profile.save`: safetensors with `layer_<l>` F32 [D], and a JSON file of the same name beside it.

    {"format_version": 6, "saklas_version": ..., "method": "profile", "tensor_sha256": ..., "provenance": {}}

The digest is that of the safetensors file. The vector acts on the output of block `l`, its length is
the layer's weight.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from . import note
from .files import read_bytes, read_json, write_atomically
from .vectors import Vectors, by_layer, rows_of

LABEL = "saklas profile"
ONE_CONCEPT = True
FORMAT_VERSION = 6
# The release whose profiles these are; saklas wants some name there.
WRITTEN_FOR = "5.3.0"
_KEY = re.compile(r"layer_(0|[1-9][0-9]{0,8})")
_FIELDS = {"format_version", "saklas_version", "method", "tensor_sha256", "provenance"}


def matches(keys: list[str], metadata: dict[str, str]) -> bool:
    """Whether a safetensors file with these is one of saklas's."""
    return bool(keys) and all(_KEY.fullmatch(key) for key in keys)


def read(path: Path) -> Vectors:
    """One concept, named as the file unless the note says otherwise."""
    content = read_bytes(path)
    said = _sidecar(path, hashlib.sha256(content).hexdigest())
    found = []
    for key, tensor in safetensors.torch.load(content).items():
        match = _KEY.fullmatch(key)
        if not match or tensor.ndim != 1:
            raise ValueError(
                f"it has a tensor {key[:40]!r} of shape {list(tensor.shape)}; a profile has layer_<l> [D]"
            )
        found.append((int(match[1]), rows_of(tensor, key)))
    rows = by_layer(found)
    if "emosteer" in said["provenance"]:
        return note.restored(rows, said["provenance"]["emosteer"])
    kept = {key: said[key] for key in ("method", "saklas_version")}
    return Vectors([path.stem], rows, provenance={**said["provenance"], "saklas": kept})


def _sidecar(path: Path, digest: str) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if not beside.is_file():
        raise ValueError(f"{beside.name} is not beside it; a saklas profile is the two files together")
    said = read_json(beside)
    if not isinstance(said, dict) or set(said) != _FIELDS or not isinstance(said["provenance"], dict):
        raise ValueError(f"{beside.name} must be an object with just {', '.join(sorted(_FIELDS))}")
    if said["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{beside.name} has format_version {said['format_version']!r}, this release reads {FORMAT_VERSION}"
        )
    if said["tensor_sha256"] != digest:
        raise ValueError(f"{beside.name} names another SHA-256: one of the two files was changed")
    return said


def write(vectors: Vectors, path: Path, *, length: str = "magnitude") -> None:
    """Write one concept: `path` and the JSON file beside it."""
    if path.suffix != ".safetensors":
        raise ValueError(f"a saklas profile must be named *.safetensors, got {path.name}")
    rows, said = note.rows_and_note(vectors, length)
    content = safetensors.torch.save({f"layer_{layer}": row[0].cpu().clone() for layer, row in rows.items()})
    sidecar = {
        "format_version": FORMAT_VERSION,
        "saklas_version": WRITTEN_FOR,
        "method": "profile",
        "tensor_sha256": hashlib.sha256(content).hexdigest(),
        "provenance": {"emosteer": said},
    }
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), json.dumps(sidecar, allow_nan=False).encode())
