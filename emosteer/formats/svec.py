"""`.svec` JSON of IBM's activation-steering (CAST) and of AISteer360.

    {"model_type": "llama", "directions": {"15": [...D]} or {"15": [[...D], ...K]}, "explained_variances": {}}

CAST has one vector a layer, AISteer360 K of them and reads CAST's files. Both take the direction of
layer `l` from the output of block `l`, and so do we; AISteer360's CAA also adds it there, but CAST, in
either library, adds it to the *input* of block `l`, which is where our layer `l − 1` is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from . import note
from .files import read_json, write_atomically
from .vectors import Vectors, by_layer, number, rows_of

LABEL = ".svec file"
ONE_CONCEPT = False


def read(path: Path) -> Vectors:
    """One concept, or K named `<file>.0` and so on."""
    said = read_json(path)
    if not isinstance(said, dict) or not isinstance(said.get("directions"), dict):
        raise ValueError('it must be a JSON object with an object "directions"')
    if said.get("num_heads") is not None or said.get("head_dim") is not None:
        raise ValueError(
            "its vectors are for attention heads (num_heads, head_dim), not for the residual stream"
        )
    rows = by_layer(
        (number(key, 'a key of "directions"'), _row(value, key)) for key, value in said["directions"].items()
    )
    meta = said.get("meta")
    if isinstance(meta, dict) and "emosteer" in meta:
        return note.restored(rows, meta["emosteer"])
    k = len(next(iter(rows.values())))
    names = [path.stem] if k == 1 else [f"{path.stem}.{i}" for i in range(k)]
    kept = {key: said[key] for key in ("model_type", "explained_variances", "meta") if said.get(key)}
    return Vectors(names, rows, provenance=kept)


def _row(value: Any, layer: str) -> torch.Tensor:
    try:
        tensor = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"directions[{layer!r}] must be a list of numbers, or of equally long such lists"
        ) from None
    return rows_of(tensor, f"directions[{layer!r}]")


def write(vectors: Vectors, path: Path, *, length: str = "magnitude", model_type: str | None = None) -> None:
    """Write 1-D vectors for one concept (both libraries), `[K, D]` for several (AISteer360)."""
    rows, said = note.rows_and_note(vectors, length)
    one = len(vectors.names) == 1
    provenance = vectors.provenance
    content = {
        "model_type": model_type or provenance.get("model_type") or "unknown",
        "directions": {str(layer): (row[0] if one else row).tolist() for layer, row in rows.items()},
        "explained_variances": provenance.get("explained_variances") or {},
        "meta": {**(provenance.get("meta") or {}), "emosteer": said},
    }
    write_atomically(path, json.dumps(content, allow_nan=False).encode())
