"""What rides along in a foreign file, so that a bank written to it comes back to the bit.

Other libraries keep one raw vector a layer: the direction times its length, rounded to float32. From
that alone direction and length come back to a unit in the last place only. The note holds the factor
each row was multiplied with and, for each number, by how many units in the last place dividing misses
the direction. Libraries that do not know the note overlook it.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import Any

import torch
from torch import Tensor

from .files import parse_json
from .vectors import Vectors, number

VERSION = 1
LENGTHS = ("magnitude", "unit", "scale")
# As in Bank: rows this close to unit length are unit rows, and keep their bits.
_ALREADY_UNIT = 1e-6
# How far a direction's length may be from 1; fp32 rounding stays below 1e-6.
_UNIT_TOLERANCE = 1e-5


def rows_and_note(vectors: Vectors, length: str) -> tuple[dict[int, Tensor], dict[str, Any]]:
    """The rows to write, and the note that undoes it.

    Args:
        vectors: what is to be written.
        length: of the rows. "magnitude": as the vectors are, direction times magnitude. "unit": 1.
            "scale": the layer's mean residual norm, so that the other library's coefficient is a
            strength as `es.add` takes it.

    Raises:
        ValueError: an unknown length, no scale, or a length that float32 cannot hold.
    """
    note = plain_note(vectors)
    if vectors.magnitude is None and length == "magnitude":
        return vectors.directions, note
    unit, wanted = unit_and_length(vectors, length)
    _, magnitude = _unit(vectors)
    note["magnitude"] = {str(layer): value.tolist() for layer, value in magnitude.items()}
    rows, factors, misses = {}, {}, []
    for layer, direction in unit.items():
        # A vector that is of unit length but for its last bits is written as it is, as others made it.
        near = (wanted[layer] - 1).abs() <= _ALREADY_UNIT
        factor = torch.where(near, 1.0, wanted[layer])
        rows[layer] = (direction.double() * factor[:, None]).float()
        miss = _bits(direction) - _bits(_divided(rows[layer], factor))
        if not bool(torch.isfinite(rows[layer]).all()) or bool((miss.abs() > 127).any()):
            raise ValueError(
                f"rows of length {factor.tolist()[:3]} at layer {layer} do not fit float32; "
                'write them with length="unit"'
            )
        factors[str(layer)] = factor.tolist()
        misses.append(miss.to(torch.int8).flatten())
    note["factor"] = factors
    packed = zlib.compress(torch.cat(misses).numpy().tobytes(), 9)
    note["ulps"] = base64.b64encode(packed).decode("ascii")
    note["crc32"] = _checksum(rows)
    return rows, note


def unit_and_length(vectors: Vectors, length: str) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Unit rows, and float64 `[K]` how long each shall be."""
    if length not in LENGTHS:
        raise ValueError(f"length must be one of {', '.join(LENGTHS)}, got {length!r}")
    if length == "scale" and not vectors.scale:
        raise ValueError(
            'length="scale" needs the mean residual norm of each layer, and these vectors know none'
        )
    unit, magnitude = _unit(vectors)
    if length == "magnitude":
        return unit, {layer: value.double() for layer, value in magnitude.items()}
    lengths = {layer: 1.0 if length == "unit" else float((vectors.scale or {})[layer]) for layer in unit}
    return unit, {l: torch.full((len(rows),), lengths[l], dtype=torch.float64) for l, rows in unit.items()}


def plain_note(vectors: Vectors) -> dict[str, Any]:
    """The note without lengths: names, provenance and scale."""
    note: dict[str, Any] = {"version": VERSION, "names": list(vectors.names)}
    if vectors.provenance:
        note["provenance"] = vectors.provenance
    if vectors.scale:
        note["scale"] = {str(layer): float(value) for layer, value in vectors.scale.items()}
    return note


def with_lengths(vectors: Vectors, length: dict[int, Tensor]) -> dict[str, Any]:
    """The note for a format that keeps unit rows and their lengths apart: the magnitudes those lengths stand for."""
    _, magnitude = _unit(vectors)
    said = plain_note(vectors)
    said["magnitude"] = {str(layer): value.tolist() for layer, value in magnitude.items()}
    said["length"] = {str(layer): value.tolist() for layer, value in length.items()}
    return said


def magnitude_of(said: Any, length: dict[int, Tensor]) -> dict[int, Tensor]:
    """The magnitudes that these lengths stand for; the lengths themselves where somebody changed them since."""
    shape = [len(next(iter(length.values())))]
    if isinstance(said, dict) and "length" in said:
        noted = _numbers(said, "length", length, shape)
        if all(torch.equal(noted[layer], value.double()) for layer, value in length.items()):
            return {
                layer: value.float() for layer, value in _numbers(said, "magnitude", length, shape).items()
            }
    return {layer: value.float() for layer, value in length.items()}


def restored(rows: dict[int, Tensor], note: Any) -> Vectors:
    """What was written: the directions to the bit where the rows still are what the note was made for.

    Rows that somebody changed since are taken as they are, under the note's names.

    Raises:
        ValueError: a note that is broken.
    """
    if not isinstance(note, dict) or note.get("version") != VERSION:
        raise ValueError(f"its emosteer note must be version {VERSION}, got {str(note)[:60]}")
    names = note.get("names")
    k = len(next(iter(rows.values())))
    if not isinstance(names, list) or len(names) != k or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its emosteer note must name {k} concepts, got {str(names)[:60]}")
    provenance = note.get("provenance", {})
    if not isinstance(provenance, dict):
        raise ValueError("its emosteer note has a provenance that is no object")
    scale = _numbers(note, "scale", rows, []) if "scale" in note else None
    kept = Vectors(names, rows, scale=scale, provenance=provenance)
    if "factor" not in note or note.get("crc32") != _checksum(rows):
        return kept
    factor = _numbers(note, "factor", rows, [k])
    magnitude = _numbers(note, "magnitude", rows, [k])
    d = next(iter(rows.values())).shape[1]
    misses = _unpacked(note.get("ulps"), len(rows) * k * d).view(len(rows), k, d)
    unit = {}
    for miss, (layer, row) in zip(misses, rows.items()):
        unit[layer] = (_bits(_divided(row, factor[layer])) + miss.to(torch.int32)).view(torch.float32)
        length = torch.linalg.vector_norm(unit[layer].double(), dim=1)
        again = (unit[layer].double() * factor[layer][:, None]).float()
        if not bool(((length - 1).abs() <= _UNIT_TOLERANCE).all()) or not torch.equal(
            _bits(again), _bits(row)
        ):
            raise ValueError("its emosteer note does not belong to its vectors; delete the note")
    kept.directions = unit
    kept.magnitude = {layer: value.float() for layer, value in magnitude.items()}
    return kept


def to_text(note: dict[str, Any]) -> str:
    return json.dumps(note, allow_nan=False, sort_keys=True)


def from_text(rows: dict[int, Tensor], text: str | bytes) -> Vectors:
    return restored(rows, parse_json(text, "its emosteer note"))


def _unit(vectors: Vectors) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    if vectors.magnitude is not None:
        return vectors.directions, vectors.magnitude
    unit, magnitude = {}, {}
    for layer, rows in vectors.directions.items():
        exact = torch.linalg.vector_norm(rows.double(), dim=1)
        if not bool((exact > 0).all()):
            raise ValueError(f"the vector at layer {layer} is zero and has no direction")
        keep = (exact - 1).abs() <= _ALREADY_UNIT
        unit[layer] = torch.where(keep[:, None], rows, (rows.double() / exact[:, None]).float())
        magnitude[layer] = exact.float()
    return unit, magnitude


def _divided(rows: Tensor, factor: Tensor) -> Tensor:
    return (rows.double() / factor.double()[:, None]).float()


def _checksum(rows: dict[int, Tensor]) -> int:
    """Of the layers and the little-endian float32 numbers: enough to see a change, no proof against malice."""
    total = 0
    for layer, row in rows.items():
        total = zlib.crc32(
            row.cpu().contiguous().numpy().astype("<f4").tobytes(), zlib.crc32(str(layer).encode(), total)
        )
    return total


def _bits(rows: Tensor) -> Tensor:
    return rows.contiguous().view(torch.int32)


def _numbers(note: dict[str, Any], key: str, rows: dict[int, Tensor], shape: list[int]) -> dict[int, Any]:
    """Layer -> finite numbers of `shape` from the note, for just the layers that are there."""
    given = note.get(key)
    if not isinstance(given, dict):
        raise ValueError(f"its emosteer note lacks {key!r}")
    found = {number(layer, f"a key of the note's {key!r}"): value for layer, value in given.items()}
    if found.keys() != rows.keys():
        raise ValueError(
            f"its emosteer note has {key!r} for layers {list(found)[:8]}, the file has {list(rows)[:8]}"
        )
    kept = {}
    for layer, value in found.items():
        try:
            tensor = torch.tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(f"its emosteer note has no numbers in {key!r}") from None
        if list(tensor.shape) != shape or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"its emosteer note must have {key!r} of shape {shape}, finite")
        if not bool((tensor >= 0).all()) or (key == "factor" and not bool((tensor > 0).all())):
            raise ValueError(f"its emosteer note has negative numbers in {key!r}")
        kept[layer] = tensor
    return {layer: kept[layer] for layer in rows}


def _unpacked(text: Any, size: int) -> Tensor:
    try:
        packed = base64.b64decode(text, validate=True)
        unpack = zlib.decompressobj()
        raw = unpack.decompress(packed, size + 1)
    except (TypeError, ValueError, binascii.Error, zlib.error):
        raise ValueError("its emosteer note has broken 'ulps'") from None
    if len(raw) != size:
        raise ValueError(f"its emosteer note has 'ulps' for {len(raw)} numbers, the file has {size}")
    return torch.frombuffer(bytearray(raw), dtype=torch.int8)
