"""Files of `torch.save`, read with `weights_only` after a look at what they would do.

`weights_only` keeps a pickle from running code. It still lets one ask for a great deal of memory, so
before it is let loose the archive must be one that `torch.save` writes: nothing compressed, no member
twice, together no larger than the file; and the pickle must name tensors and plain containers only.
"""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .files import write_atomically

_CONTAINERS = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_MAX_CALLS = 100_000
# The note is a member of the archive of its own, which torch overlooks: the content stays just what others expect.
_NOTE = "emosteer.json"


def read(path: Path, known: Mapping[tuple[str, str], type] | None = None) -> tuple[Any, str | None]:
    """What the file holds, and the text of our note where it has one.

    Args:
        path: the file.
        known: module and name of a class in the file, to the harmless one that stands in for it.

    Raises:
        ValueError: not a file of `torch.save`, one that names code, or one that declares more than it holds.
    """
    known = known or {}
    note = _inspect(path, {" ".join(name) for name in known})
    stand_ins: list[Any] = [(stand_in, ".".join(name)) for name, stand_in in known.items()]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True), note
    except MemoryError:
        raise ValueError("it asks for more memory than there is") from None
    except Exception as error:  # torch raises whatever its unpickler met
        raise ValueError(
            f"torch cannot read it: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from None


def write(path: Path, content: Any, note: str | None = None) -> None:
    """`torch.save`, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    if note is not None:
        with zipfile.ZipFile(buffer, "a", zipfile.ZIP_STORED) as archive:
            folder = archive.namelist()[0].split("/", 1)[0]
            archive.writestr(f"{folder}/{_NOTE}", note)
    write_atomically(path, buffer.getvalue())


def _inspect(path: Path, known: set[str]) -> str | None:
    """The note's text; raises where the file is none that `torch.save` writes, or names code."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        begins = file.read(4)
    if begins != b"PK\x03\x04":
        raise ValueError("it is no archive of torch.save; one from before torch 1.6 must be saved again")
    try:
        with zipfile.ZipFile(path) as archive:
            pickle, note = _members(archive, size)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError) as error:
        raise ValueError(f"its archive is broken: {error}") from None
    _check(pickle, size, known)
    return note


def _members(archive: zipfile.ZipFile, size: int) -> tuple[bytes, str | None]:
    """The pickle and the note."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("a member of the archive is there twice")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("a member of the archive is compressed, which torch.save never does")
    if sum(member.file_size for member in members) > size:
        raise ValueError("the members of the archive together are larger than the file")
    pickles = [name for name in names if name.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError(f"the archive has {len(pickles)} data.pkl, a file of torch.save has one")
    notes = [name for name in names if name.split("/", 1)[-1] == _NOTE]
    note = archive.read(notes[0]).decode("utf-8", "replace") if notes else None
    return archive.read(pickles[0]), note


def _check(pickle: bytes, size: int, known: set[str]) -> None:
    """Raise where the pickle names code, or declares more than the file can hold."""
    calls = 0
    for code, argument in _operations(pickle):
        if code in ("GLOBAL", "INST") and not _harmless(str(argument), known):
            raise ValueError(
                f"its pickle names {str(argument).replace(' ', '.')[:80]!r}, which is neither a tensor nor a plain "
                "container; it is not read, since it may run code. Save tensors, dicts, strings and numbers only"
            )
        if code in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "OBJ"):
            raise ValueError(
                f"its pickle uses {code}, which torch.save does not; save it again with torch.save"
            )
        calls += code in ("REDUCE", "NEWOBJ", "BUILD")
        # Sizes, strides and offsets of what is really stored stay below the size of the file.
        if (
            isinstance(argument, int)
            and not isinstance(argument, bool)
            and abs(argument) > max(size, 1 << 20)
        ):
            raise ValueError(
                f"its pickle declares {argument}, more than the {size} bytes of the file can hold"
            )
    if calls > _MAX_CALLS:
        raise ValueError(f"its pickle makes {calls} objects, more than any file of vectors")


def _operations(pickle: bytes) -> Iterator[tuple[str, Any]]:
    try:
        for operation, argument, _ in pickletools.genops(pickle):
            yield operation.name, argument
    except Exception as error:  # pickletools raises whatever the bytes made it do
        raise ValueError(f"its pickle is broken: {error}") from None


def _harmless(name: str, known: set[str]) -> bool:
    storage = (
        name.startswith("torch ")
        and name.endswith("Storage")
        and "Typed" not in name
        and "Untyped" not in name
    )
    return storage or name in _CONTAINERS or name in known
