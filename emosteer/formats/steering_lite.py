"""steering-lite's `Vector.save`: safetensors with `layer<l>.<state>` and the configuration in the header.

    header: {"cfg": JSON of the method's configuration};  tensors: "layer<l>.v" [D]

Only methods whose state is one vector a layer are directions: mean_diff and pca. The vector is added to
the output of block `l`, times the configuration's `coeff`, which is kept in provenance and not
multiplied in.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from . import note
from .files import parse_json, write_atomically
from .vectors import Vectors, by_layer, rows_of

LABEL = "steering-lite file"
ONE_CONCEPT = True
_KEY = re.compile(r"layer(0|[1-9][0-9]{0,8})\.(.+)")


def matches(keys: list[str], metadata: dict[str, str]) -> bool:
    """Whether a safetensors file with these is one of steering-lite's."""
    return "cfg" in metadata


def read(path: Path) -> Vectors:
    """One concept, named as the file unless the note says otherwise."""
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        cfg = parse_json(metadata.get("cfg", ""), 'the "cfg" in its header')
        if not isinstance(cfg, dict) or not isinstance(cfg.get("method"), str):
            raise ValueError('the "cfg" in its header must be an object with a method')
        if cfg.get("target_submodule") or cfg.get("target", "residual") != "residual":
            raise ValueError("its vectors act inside a block, not on the residual stream")
        found = []
        for key in file.keys():  # noqa: SIM118  safe_open is no mapping
            match = _KEY.fullmatch(key)
            if not match or match[2] != "v":
                raise ValueError(
                    f"the method {cfg['method']!r} keeps {key!r}; only one vector a layer, layer<l>.v, is a direction"
                )
            part = file.get_slice(key)
            if len(part.get_shape()) != 1:
                raise ValueError(f"{key!r} must have shape [D], got {part.get_shape()}")
            found.append((int(match[1]), rows_of(file.get_tensor(key), key)))
    rows = by_layer(found)
    if "emosteer" in metadata:
        return note.from_text(rows, metadata["emosteer"])
    return Vectors([path.stem], rows, provenance={"steering_lite": cfg})


def write(vectors: Vectors, path: Path, *, length: str = "magnitude", coeff: float = 1.0) -> None:
    """Write one concept as the method mean_diff.

    Args:
        vectors: of one concept.
        path: the file.
        length: of the rows, see `note.rows_and_note`.
        coeff: the configuration's strength, by which the library multiplies the vectors.
    """
    rows, said = note.rows_and_note(vectors, length)
    kept = vectors.provenance.get("steering_lite")
    if isinstance(kept, dict) and kept.get("method") in ("mean_diff", "pca"):
        cfg = {**kept, "layers": sorted(rows)}
    else:
        cfg = _cfg(sorted(rows), float(coeff))
    metadata = {"cfg": json.dumps(cfg), "emosteer": note.to_text(said)}
    tensors = {f"layer{layer}.v": row[0].cpu().clone() for layer, row in rows.items()}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def _cfg(layers: list[int], coeff: float) -> dict[str, Any]:
    return {
        "method": "mean_diff",
        "layers": layers,
        "target": "residual",
        "target_submodule": None,
        "coeff": coeff,
        "dtype": "bfloat16",
        "seed": 0,
        "normalize": True,
        "subtract_corpus_mean": False,
    }
