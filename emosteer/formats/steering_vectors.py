"""steering-vectors' `SteeringVector`: `{layer: tensor}` and a layer type, as a file of `torch.save`.

The library has no file of its own; its users save the object itself, which is a pickle of the
library's class. Such files are read without the library and without running anything. Written is a
dict of plain tensors, for `SteeringVector(**torch.load(path, weights_only=True))`.

Layer `l` is added to the output of block `l`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from . import note, torch_file
from .vectors import Vectors, by_layer, number, rows_of

LABEL = "steering-vectors file"
ONE_CONCEPT = True


class Stored:
    """What stands in for the library's class while a file is read: attributes, no code."""


KNOWN = {
    ("steering_vectors.steering_vector", "SteeringVector"): Stored,
    ("steering_vectors", "SteeringVector"): Stored,
}


def matches(content: Any) -> bool:
    """Whether a file of `torch.save` holds this."""
    if isinstance(content, Stored):
        return True
    return isinstance(content, dict) and (
        "layer_activations" in content or (bool(content) and all(isinstance(key, int) for key in content))
    )


def read(path: Path) -> Vectors:
    """One concept, named as the file unless the note says otherwise."""
    content, said = torch_file.read(path, KNOWN)
    vectors = of_content(content, path.stem)
    return vectors if said is None else note.from_text(vectors.directions, said)


def of_content(content: Any, name: str) -> Vectors:
    """One concept out of the object, its dict, or a bare `{layer: tensor}`."""
    if isinstance(content, Stored):
        content = vars(content)
    if not matches(content):
        raise ValueError(f"it must hold layer_activations by layer, got {type(content).__name__}")
    kind = content.get("layer_type", "decoder_block")
    if kind != "decoder_block":
        raise ValueError(f"its layer_type is {kind!r}; only decoder_block is the residual stream")
    layers = content.get("layer_activations", content)
    if not isinstance(layers, dict):
        raise ValueError(f"its layer_activations must be a dict, got {type(layers).__name__}")
    rows = by_layer((number(layer, "a layer"), _row(value, layer)) for layer, value in layers.items())
    return Vectors([name], rows)


def _row(value: Any, layer: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"layer {layer} must hold a tensor, got {type(value).__name__}")
    rows = rows_of(value, f"layer {layer}")
    if len(rows) > 1:
        raise ValueError(f"layer {layer} must hold one vector, got shape {list(value.shape)}")
    return rows


def write(vectors: Vectors, path: Path, *, length: str = "magnitude") -> None:
    """Write one concept as the arguments of `SteeringVector`."""
    rows, said = note.rows_and_note(vectors, length)
    layers = {layer: row[0].cpu().clone() for layer, row in rows.items()}
    torch_file.write(path, {"layer_activations": layers, "layer_type": "decoder_block"}, note.to_text(said))
