"""Plain `.npz`: everything a bank holds as arrays that NumPy alone reads, without pickle.

    names          unicode [K]
    layers         int64 [L]
    directions.<l> float32 [K, D], and likewise magnitude, mean, scale, projection_mean, projection_std
    provenance     unicode [], JSON

Of other people's files, arrays named by a layer's number are read, `7`, `layer_7`, `direction.7` or
`layers.7` and the like, each `[D]` or `[K, D]`.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from .files import parse_json, write_atomically
from .vectors import Vectors, by_layer, number, rows_of

LABEL = ".npz file"
ONE_CONCEPT = False
_FIELDS = ("directions", "magnitude", "mean", "scale", "projection_mean", "projection_std")
_OTHERS = re.compile(r"(?:(?:layers?|directions?|vectors?|blocks?)[._]?)?(0|[1-9][0-9]{0,8})")
# Numbers hardly compress; an archive that unpacks to more than this is made to fill memory.
_RATIO, _FREE = 64, 64 << 20


def read(path: Path) -> Vectors:
    """K concepts: a bank's own arrays, else arrays by layer, named after the file."""
    arrays = _arrays(path)
    if "names" not in arrays:
        return _others(path.stem, arrays)
    names = arrays.pop("names")
    if names.ndim != 1 or names.dtype.kind != "U":
        raise ValueError(f"its names must be a list of strings, got {names.dtype} {list(names.shape)}")
    arrays.pop("layers", None)
    provenance = parse_json(str(arrays.pop("provenance", np.array("{}"))), "its provenance")
    if not isinstance(provenance, dict):
        raise ValueError("its provenance must be a JSON object")
    fields: dict[str, dict[int, Any]] = {}
    for key, array in arrays.items():
        field, _, layer = key.rpartition(".")
        if field not in _FIELDS:
            raise ValueError(
                f"it has an array {key!r}; a bank's are names, layers, provenance and <field>.<layer>"
            )
        value = rows_of(_tensor(array, key), key) if field == "directions" else _tensor(array, key)
        if number(layer, f"the end of {key!r}") in fields.setdefault(field, {}):
            raise ValueError(f"{key!r} is there twice")
        fields[field][int(layer)] = value
    if "directions" not in fields:
        raise ValueError("it has names but no directions")
    directions = by_layer(fields.pop("directions").items())
    if any(len(rows) != len(names) for rows in directions.values()):
        raise ValueError(
            f"it has {len(names)} names for {len(next(iter(directions.values())))} vectors a layer"
        )
    return Vectors([str(name) for name in names], directions, provenance=provenance, **fields)


def _others(stem: str, arrays: dict[str, np.ndarray]) -> Vectors:
    found = []
    for key, array in arrays.items():
        match = _OTHERS.fullmatch(key)
        if not match:
            raise ValueError(
                f"it has an array {key[:40]!r}, whose name is no layer's, as 7, layer_7 or direction.7 are"
            )
        found.append((int(match[1]), rows_of(_tensor(array, key), key)))
    rows = by_layer(found)
    k = len(next(iter(rows.values())))
    return Vectors([stem] if k == 1 else [f"{stem}.{i}" for i in range(k)], rows)


def _tensor(array: np.ndarray, key: str) -> torch.Tensor:
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(f"the array {key!r} must hold floating-point numbers, got {array.dtype}")
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Each array of the archive, its declared size checked against what is stored before it is made."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            unpacked, size = sum(member.file_size for member in members), path.stat().st_size
            if unpacked > max(_RATIO * size, _FREE):
                raise ValueError(f"its {size} bytes unpack to {unpacked}, which no array of vectors does")
            arrays: dict[str, np.ndarray] = {}
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name in arrays:
                    raise ValueError(f"the array {name!r} is there twice")
                with archive.open(member) as file:
                    arrays[name] = _array(file, name, member.file_size)
            return arrays
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError) as error:
        raise ValueError(f"its archive is broken: {error}") from None
    except Exception as error:
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"its archive is broken: {error!r}") from None  # zlib.error, struct.error and others


def _array(file: IO[bytes], name: str, size: int) -> np.ndarray:
    lib = np.lib.format
    try:
        version = lib.read_magic(file)
        read_header = {(1, 0): lib.read_array_header_1_0, (2, 0): lib.read_array_header_2_0}[version]
        shape, fortran, dtype = read_header(file)
    except (KeyError, ValueError, TypeError, SyntaxError) as error:
        raise ValueError(f"the array {name!r} has no header of .npy version 1.0 or 2.0: {error}") from None
    if dtype.hasobject:
        raise ValueError(f"the array {name!r} holds Python objects, which may run code; it is not read")
    n = math.prod(shape)
    if n * dtype.itemsize > size or any(side < 0 for side in shape):
        raise ValueError(
            f"the array {name!r} declares shape {list(shape)} of {dtype}, {n * dtype.itemsize} bytes, "
            f"where {size} are stored"
        )
    content = file.read(n * dtype.itemsize)
    if len(content) < n * dtype.itemsize:
        raise ValueError(f"the array {name!r} is cut short")
    array = np.frombuffer(content, dtype, count=n) if n and dtype.itemsize else np.zeros(n, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def write(vectors: Vectors, path: Path) -> None:
    """Write all there is."""
    arrays: dict[str, np.ndarray] = {
        "names": np.array(vectors.names),
        "layers": np.array(list(vectors.directions), dtype=np.int64),
        "provenance": np.array(json.dumps(vectors.provenance, allow_nan=False)),
    }
    for field in _FIELDS:
        for layer, value in (getattr(vectors, field) or {}).items():
            arrays[f"{field}.{layer}"] = torch.as_tensor(value, dtype=_dtype(field)).cpu().numpy()
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def _dtype(field: str) -> torch.dtype:
    return torch.float64 if field == "scale" else torch.float32
