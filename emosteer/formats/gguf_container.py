"""The GGUF container, as far as control vectors use it: key-values and dense float tensors.

The package gguf reads these files too, but trusts their counts: an array that declares 2^60 entries
keeps it busy until memory is gone. Here nothing is read, or looped over, beyond the bytes there are.

    magic "GGUF" · version u32 · tensors u64 · key-values u64
    key-values:   key · type u32 · value           (strings: length u64, UTF-8)
    tensors:      name · dimensions u32 · sizes u64, fastest first · type u32 · offset u64
    padding to the alignment, then the tensors, each at an aligned offset
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_TENSORS: dict[int, np.dtype] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8")}
_NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 8: "Q8_0", 12: "Q4_K", 28: "F64", 30: "BF16"}


def read(content: memoryview) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Key-values and tensors; the arrays are views of `content`.

    Raises:
        ValueError: what is not so in the file, and where.
    """
    cursor = _Cursor(content)
    if bytes(content[:4]) != MAGIC:
        raise ValueError(f"it begins with {bytes(content[:4])!r}, a GGUF file with {MAGIC!r}")
    cursor.at = 4
    version = cursor.scalar("<I")
    if version not in (2, VERSION):
        kind = "big-endian" if version in (2 << 24, VERSION << 24) else f"version {version}"
        raise ValueError(f"it is {kind} GGUF; little-endian versions 2 and 3 are read")
    n_tensors, n_values = cursor.scalar("<Q"), cursor.scalar("<Q")
    values: dict[str, Any] = {}
    for _ in range(cursor.count(n_values, 13, "key-values")):
        key = cursor.text("a key")
        if key in values:
            raise ValueError(f"the key {key!r} is there twice")
        values[key] = cursor.value(cursor.scalar("<I"))
    described = [_describe(cursor) for _ in range(cursor.count(n_tensors, 24, "tensors"))]
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise ValueError(f"its alignment must be a power of two, got {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, np.ndarray] = {}
    for name, shape, type_, offset in described:
        if name in tensors:
            raise ValueError(f"the tensor {name!r} is there twice")
        tensors[name] = _tensor(content, start, name, shape, type_, offset, alignment)
    return values, tensors


def write(values: dict[str, str | int], tensors: dict[str, np.ndarray]) -> bytes:
    """A file with these strings and unsigned 32-bit numbers, and these float32 tensors."""
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(values))]
    for key, value in values.items():
        head.append(_packed(key))
        if isinstance(value, str):
            head += [struct.pack("<I", _STRING), _packed(value)]
        else:
            head.append(struct.pack("<II", _UINT32, value))
    blocks, offset = [], 0
    for name, tensor in tensors.items():
        block = np.ascontiguousarray(tensor, dtype="<f4").tobytes()
        sizes = tensor.shape[::-1]
        head += [_packed(name), struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, 0, offset)]
        blocks.append(block + b"\0" * (-len(block) % ALIGNMENT))
        offset += len(blocks[-1])
    described = b"".join(head)
    return described + b"\0" * (-len(described) % ALIGNMENT) + b"".join(blocks)


def _packed(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


class _Cursor:
    """A place in the file; whatever is declared must fit in the bytes that are left."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.at = content, 0

    def take(self, size: int, what: str) -> memoryview:
        left = len(self.content) - self.at
        if size > left:
            raise ValueError(f"{what} at byte {self.at} declares {size} bytes, {left} are left")
        part = self.content[self.at : self.at + size]
        self.at += size
        return part

    def scalar(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form), "a number"))[0]

    def count(self, n: int, least: int, what: str) -> int:
        left = len(self.content) - self.at
        if n * least > left:
            raise ValueError(f"{n} {what} declared at byte {self.at}, where {left} bytes are left")
        return n

    def text(self, what: str) -> str:
        raw = self.take(self.scalar("<Q"), what)
        try:
            return bytes(raw).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{what} before byte {self.at} is not UTF-8") from None

    def value(self, kind: int) -> Any:
        """A string or a number; arrays are stepped over, no control vector needs one."""
        if kind == _STRING:
            return self.text("a string")
        if kind == _ARRAY:
            inner, n = self.scalar("<I"), self.scalar("<Q")
            if inner == _STRING:
                for _ in range(self.count(n, 8, "strings")):
                    self.take(self.scalar("<Q"), "a string")
            elif inner in _SCALARS:
                self.take(n * struct.calcsize(_SCALARS[inner]), "an array")
            else:
                raise ValueError(f"an array of type {inner} at byte {self.at} is not read")
            return None
        if kind not in _SCALARS:
            raise ValueError(f"a value of type {kind} at byte {self.at}; GGUF has types 0 to 12")
        return self.scalar(_SCALARS[kind])


def _describe(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text("a tensor's name")
    dimensions = cursor.scalar("<I")
    if dimensions > 4:
        raise ValueError(f"the tensor {name!r} declares {dimensions} dimensions; GGUF has at most 4")
    sizes = tuple(cursor.scalar("<Q") for _ in range(dimensions))
    return name, sizes[::-1], cursor.scalar("<I"), cursor.scalar("<Q")


def _tensor(
    content: memoryview, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int, alignment: int
) -> np.ndarray:
    if kind not in _TENSORS:
        raise ValueError(
            f"the tensor {name!r} is {_NAMES.get(kind, f'of type {kind}')}; F32, F16 and F64 are read, "
            "so write the vectors unquantised"
        )
    dtype, n = _TENSORS[kind], math.prod(shape)
    size, left = n * dtype.itemsize, len(content) - start - offset
    if size > left:
        raise ValueError(
            f"the tensor {name!r} declares shape {list(shape)}, {size} bytes, where {max(left, 0)} are left: "
            "the file is cut short or its header is wrong"
        )
    if offset % alignment:
        raise ValueError(f"the tensor {name!r} lies at offset {offset}, which is no multiple of {alignment}")
    return (
        np.frombuffer(content, dtype, count=n, offset=start + offset).reshape(shape)
        if n
        else np.zeros(shape, dtype)
    )
