"""The file of a bank: one safetensors file, names and provenance as JSON in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .files import write_atomically
from .vectors import Vectors

LABEL = "emosteer bank"
ONE_CONCEPT = False
FORMAT = "emosteer.bank"
VERSION = 1
# How far a stored direction's length may be from 1; fp32 rounding stays below 1e-6.
UNIT_TOLERANCE = 1e-5
# What a file may hold for each layer besides `directions` and `magnitude`: shapes by (K, D).
OPTIONAL = {
    "mean": lambda k, d: [d],
    "scale": lambda k, d: [],
    "projection_mean": lambda k, d: [k],
    "projection_std": lambda k, d: [k],
}


def write(vectors: Vectors, path: Path) -> None:
    """Write the tensors of every field as `<field>.<layer>`, whole or not at all."""
    tensors = {}
    for field in ("directions", "magnitude", *OPTIONAL):
        for layer, value in (getattr(vectors, field) or {}).items():
            whole = isinstance(value, Tensor)
            tensor = value if whole else torch.tensor(value, dtype=torch.float64)
            # A copy: two fields may share memory (a subset's mean with its bank's), a file may not.
            tensors[f"{field}.{layer}"] = tensor.cpu().contiguous().clone()
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "names": json.dumps(list(vectors.names)),
        "layers": json.dumps(list(vectors.directions)),
        "provenance": json.dumps(dict(vectors.provenance), sort_keys=True),
    }
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def read(path: Path) -> Vectors:
    """What the file holds, every key, dtype, shape and length checked."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
        if metadata.get("version") != str(VERSION):
            raise ValueError(
                f"it has version {metadata.get('version')!r}, this release reads {str(VERSION)!r}"
            )
        names = _json(metadata, "names", list)
        layers = _json(metadata, "layers", list)
        provenance = _json(metadata, "provenance", dict)
        if not all(type(layer) is int and layer >= 0 for layer in layers) or not layers:
            raise ValueError(f"its layers must be integers of at least 0, got {layers}")
        if len(set(layers)) < len(layers):
            raise ValueError(f"its layers must all be different, got {layers}")
        keys = set(file.keys())
        fields = ["directions", "magnitude", *(f for f in OPTIONAL if f"{f}.{layers[0]}" in keys)]
        wanted = {f"{field}.{layer}" for field in fields for layer in layers}
        if keys != wanted:
            missing, extra = sorted(wanted - keys), sorted(keys - wanted)
            raise ValueError(f"tensors missing: {missing[:5]}, not expected: {extra[:5]}")
        first = file.get_slice(f"directions.{layers[0]}").get_shape()
        k, d = len(names), first[-1] if len(first) == 2 else -1
        shapes = {"directions": [k, d], "magnitude": [k]}
        shapes |= {field: shape(k, d) for field, shape in OPTIONAL.items()}
        read: dict[str, Any] = {field: {} for field in fields}
        for field in fields:
            dtype = "F64" if field == "scale" else "F32"
            for layer in layers:
                part = file.get_slice(f"{field}.{layer}")
                got = (part.get_dtype(), list(part.get_shape()))
                if got != (dtype, shapes[field]):
                    raise ValueError(
                        f"{field}.{layer} must be {dtype} {shapes[field]}, got {got[0]} {got[1]}"
                    )
                # A copy: the mapped file may be truncated by others while the bank is in use.
                read[field][layer] = file.get_tensor(f"{field}.{layer}").clone()
    for layer, rows in read["directions"].items():
        length = torch.linalg.vector_norm(rows.double(), dim=1)
        for k in (~((length - 1).abs() <= UNIT_TOLERANCE)).nonzero().flatten().tolist():
            raise ValueError(f"directions.{layer} has length {length[k].item():g} in row {k}, expected 1")
    return Vectors(names, provenance=provenance, **read)


def _json(metadata: Mapping[str, str], key: str, kind: type) -> Any:
    if key not in metadata:
        raise ValueError(f"its metadata lacks {key!r}")
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError):
        raise ValueError(f"its {key!r} is not valid JSON: {metadata[key][:40]!r}") from None
    if not isinstance(value, kind):
        raise ValueError(f"its {key!r} must be a JSON {kind.__name__}, got {metadata[key][:40]!r}")
    return value
