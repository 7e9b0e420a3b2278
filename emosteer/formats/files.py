"""Files: written whole or not at all, read in memory that the file's own size bounds."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

# JSON text and GGUF files beyond this hold no steering vectors: 171 concepts of the widest models stay below.
MAX_BYTES = 4 << 30


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` under another name beside `path`, then rename it.

    Raises:
        FileNotFoundError: the folder does not exist.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path.name}: no folder {path.parent}; make it first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_bytes(path: Path) -> bytes:
    """The whole file, unless it is too large to be one of vectors."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"it has {size} bytes, more than the {MAX_BYTES} that a file of vectors may have")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The JSON in a file; a key given twice and a number that is not finite are refused."""
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text: {error}") from None
    return parse_json(text)


def parse_json(text: str | bytes, what: str = "it") -> Any:
    """JSON of a stranger.

    Raises:
        ValueError: not JSON, nested too deeply, a key twice, or a number that is not finite.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_not_finite)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{what} is not valid JSON: nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _not_finite(text: str) -> Any:
    raise ValueError(f"{text} is not a finite number")
