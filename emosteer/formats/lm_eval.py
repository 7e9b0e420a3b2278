"""lm-evaluation-harness's `steer_path`: a dict of hookpoints, saved with `torch.save`.

    {"layers.3": {"steering_vector": tensor, "steering_coefficient": float, "action": "add" | "clamp",
                  "bias": tensor or None, "head_index": int or None}}

The hookpoint is a module below `model.base_model`; the output of block `l` is changed, our layer `l`.
"add" adds coefficient · vector. "clamp" sets the projection of (x − bias) on the vector to the
coefficient, which is `es.hold`: the value it holds `<x, v>` at is kept in provenance, by layer.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import note, torch_file
from .files import parse_json
from .vectors import Vectors, by_layer, rows_of

LABEL = "lm-eval steering file"
ONE_CONCEPT = True
_BLOCK = re.compile(r"(?:[A-Za-z_]+\.)*(?:layers|h|blocks|layer)\.(0|[1-9][0-9]{0,3})")
_ALREADY_UNIT = 1e-6


def matches(content: Any) -> bool:
    """Whether a file of `torch.save` holds this."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(value, dict) and "steering_vector" in value for value in content.values())
    )


def read(path: Path) -> Vectors:
    """One concept, named as the file unless the note says otherwise."""
    content, text = torch_file.read(path)
    if not matches(content):
        raise ValueError('it must be a dict of hookpoints, each a dict with a "steering_vector"')
    found: list[tuple[int, Tensor]] = []
    coefficient: dict[int, float] = {}
    hold: dict[str, float] = {}
    for hookpoint, what in content.items():
        layer = _layer(hookpoint)
        row, value = _entry(hookpoint, what)
        found.append((layer, row))
        if what["action"] == "add":
            coefficient[layer] = value
        else:
            hold[str(layer)] = value
    rows = by_layer(found)
    if hold and coefficient:
        raise ValueError('it mixes the actions "add" and "clamp"; split it into one file for each')
    said = None if text is None else parse_json(text, "its emosteer note")
    vectors = Vectors([path.stem], rows) if said is None else note.restored(rows, said)
    if hold:
        vectors.provenance = {**vectors.provenance, "hold": hold}
        return vectors
    length = {layer: torch.linalg.vector_norm(row.double()) for layer, row in rows.items()}
    if all(coefficient[l] > 0 and abs(float(length[l]) - 1) <= _ALREADY_UNIT for l in rows):
        given = {layer: torch.tensor([coefficient[layer]], dtype=torch.float64) for layer in rows}
        vectors.magnitude = note.magnitude_of(said, given)
    else:
        vectors.directions = {l: (row.double() * coefficient[l]).float() for l, row in rows.items()}
    return vectors


def _layer(hookpoint: Any) -> int:
    found = _BLOCK.fullmatch(hookpoint) if isinstance(hookpoint, str) else None
    if not found:
        raise ValueError(
            f"its hookpoint {str(hookpoint)[:60]!r} is not the output of a block such as layers.3: "
            "only that is the residual stream"
        )
    return int(found[1])


def _entry(hookpoint: str, what: dict[str, Any]) -> tuple[Tensor, float]:
    vector, bias, action = what["steering_vector"], what.get("bias"), what.get("action")
    if not isinstance(vector, Tensor) or vector.ndim != 1:
        raise ValueError(f"{hookpoint} must have a steering_vector of shape [D]")
    if action not in ("add", "clamp"):
        raise ValueError(f'{hookpoint} has the action {str(action)[:40]!r}, expected "add" or "clamp"')
    if what.get("head_index") is not None:
        raise ValueError(f"{hookpoint} is for one attention head (head_index), not for the residual stream")
    row = rows_of(vector, hookpoint)
    value = what.get("steering_coefficient", 1.0)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(
            f"{hookpoint} must have a finite number as steering_coefficient, got {str(value)[:40]}"
        )
    if bias is not None:
        if action == "add":
            raise ValueError(f'{hookpoint} has a bias, which the action "add" does not take')
        if not isinstance(bias, Tensor) or bias.shape != vector.shape:
            raise ValueError(f"{hookpoint} must have a bias of the vector's shape {list(vector.shape)}")
        exact = row[0].double()
        value = float(value) + float(rows_of(bias, hookpoint)[0].double() @ (exact / exact.norm()))
    return row, float(value)


def write(
    vectors: Vectors, path: Path, *, length: str = "magnitude", hookpoint: str = "layers.{layer}"
) -> None:
    """Write one concept with the action "add": unit vectors, the length as the coefficient.

    Args:
        vectors: of one concept.
        path: the file.
        length: "magnitude", "unit" or "scale", see `note.rows_and_note`.
        hookpoint: a block's name below `model.base_model`: "layers.{layer}", for GPT-2 "h.{layer}".
    """
    if "{layer}" not in hookpoint or not _BLOCK.fullmatch(hookpoint.replace("{layer}", "0")):
        raise ValueError(f'hookpoint must name a block, as "layers.{{layer}}" does, got {hookpoint!r}')
    unit, coefficient = note.unit_and_length(vectors, length)
    content = {
        hookpoint.replace("{layer}", str(layer)): {
            "steering_vector": row[0].cpu().clone(),
            "steering_coefficient": float(coefficient[layer]),
            "action": "add",
            "bias": None,
            "head_index": None,
        }
        for layer, row in unit.items()
    }
    torch_file.write(path, content, note.to_text(note.with_lengths(vectors, coefficient)))
