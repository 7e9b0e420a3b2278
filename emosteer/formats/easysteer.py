"""EasySteer's payload of kind "direction" as JSON: `easysteer.vectors.to_json_payload`.

    {"version": 1, "kind": "direction", "extra": {}, "sha256": ...,
     "tensors": {"layer.<l>": {"shape": [D], "data": base64 of little-endian float32}}}

Layer `l` is added to the output of decoder layer `l`. The digest covers kind, names, shapes and data.
EasySteer's GGUF files are control vectors (`gguf.py`); its other kinds are not directions.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import note
from .files import read_json, write_atomically
from .vectors import Vectors, by_layer, number, rows_of

LABEL = "EasySteer payload"
ONE_CONCEPT = True
VERSION = 1


def read(path: Path) -> Vectors:
    """One concept, named as the file unless the note says otherwise."""
    said = read_json(path)
    if not isinstance(said, dict) or "kind" not in said or not isinstance(said.get("tensors"), dict):
        raise ValueError('it must be a JSON object with "kind" and an object "tensors"')
    if said["kind"] != "direction":
        raise ValueError(
            f'its kind is {said["kind"]!r}; only "direction" holds vectors of the residual stream'
        )
    if said.get("version") != VERSION:
        raise ValueError(f"it has version {said.get('version')!r}, this release reads {VERSION}")
    if said.get("extra") != {}:
        raise ValueError('its "extra" must be empty')
    arrays = {name: _array(name, entry) for name, entry in said["tensors"].items()}
    if _digest(arrays) != said.get("sha256"):
        raise ValueError("its sha256 does not match its tensors: the file was changed or cut")
    rows = by_layer(
        (
            number(name.removeprefix("layer."), f"the end of {name!r}"),
            rows_of(torch.from_numpy(array.copy()), name),
        )
        for name, array in arrays.items()
    )
    return note.restored(rows, said["emosteer"]) if "emosteer" in said else Vectors([path.stem], rows)


def _array(name: str, entry: Any) -> np.ndarray:
    if not name.startswith("layer."):
        raise ValueError(f"it has a tensor {name!r}; directions are named layer.<number>")
    if not isinstance(entry, dict) or not isinstance(entry.get("data"), str):
        raise ValueError(f"{name!r} must be an object with a shape and base64 data")
    try:
        data = base64.b64decode(entry["data"], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the data of {name!r} is not base64") from None
    if entry.get("shape") != [len(data) // 4] or len(data) % 4 or not data:
        raise ValueError(
            f"{name!r} declares shape {str(entry.get('shape'))[:40]}, its data has {len(data)} bytes"
        )
    return np.frombuffer(data, "<f4")


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(f"direction:{VERSION}".encode())
    for name, array in sorted(arrays.items()):
        digest.update(name.encode())
        digest.update(str(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write(vectors: Vectors, path: Path, *, length: str = "magnitude") -> None:
    """Write one concept; EasySteer overlooks the note beside the payload's own keys."""
    rows, said = note.rows_and_note(vectors, length)
    arrays = {f"layer.{layer}": row[0].cpu().numpy().astype("<f4") for layer, row in rows.items()}
    content = {
        "version": VERSION,
        "kind": "direction",
        "tensors": {
            name: {"shape": list(array.shape), "data": base64.b64encode(array.tobytes()).decode("ascii")}
            for name, array in arrays.items()
        },
        "extra": {},
        "sha256": _digest(arrays),
        "emosteer": said,
    }
    write_atomically(path, json.dumps(content, allow_nan=False).encode())
