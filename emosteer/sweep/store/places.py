"""Where a sweep's folder is: a local path or anything that fsspec reaches. Files appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

# Files that are being written; nobody reads them. Parquet readers skip names that begin like this.
WRITING = "_writing-"


class FolderError(RuntimeError):
    """A sweep's folder cannot be used as asked; the message says what to do."""


class Place(Protocol):
    """The few things that a store does with files."""

    def names(self) -> list[str]:
        """Files directly in the folder; none where it does not exist."""
        ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, content: bytes) -> None:
        """Put a file there, whole, and in such a way that it outlives a power cut."""
        ...

    def move(self, name: str, to: str) -> None: ...

    def delete(self, name: str) -> None: ...

    def size(self, name: str) -> int: ...


def place_of(folder: str | os.PathLike[str]) -> Place:
    """A local folder for a path or `file://` URL, an fsspec one for other URLs.

    Raises:
        ImportError: fsspec, or what it needs for the URL, is not installed.
    """
    text = os.fspath(folder)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemotePlace(text) if "://" in text else LocalPlace(Path(text).expanduser())


class LocalPlace:
    """A folder of this machine's file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in os.scandir(self.path) if entry.is_file())
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            raise FolderError(f"{self.path} is a file; a sweep needs a folder") from None

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.path / f"{WRITING}{uuid.uuid4().hex}"
        try:
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / name)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(self.path)

    def move(self, name: str, to: str) -> None:
        target = self.path / to
        target.parent.mkdir(exist_ok=True)
        os.replace(self.path / name, target)
        _sync_folder(target.parent)
        _sync_folder(self.path)

    def delete(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size


def _sync_folder(path: Path) -> None:
    """A renamed file is only sure to be there once its folder is on disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class RemotePlace:
    """A folder behind an fsspec URL. Object stores put a file whole; elsewhere it is renamed into place."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError:
            raise ImportError(f'{url} needs fsspec: pip install "emosteer[sweep]"') from None
        self.url = url
        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(url)

    def __str__(self) -> str:
        return self.url

    def _at(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def names(self) -> list[str]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._root, detail=True)
        except FileNotFoundError:
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file")

    def read(self, name: str) -> bytes:
        return self._fs.cat_file(self._at(name))

    def write(self, name: str, content: bytes) -> None:
        self._fs.makedirs(self._root, exist_ok=True)
        temporary = self._at(f"{WRITING}{uuid.uuid4().hex}")
        try:
            self._fs.pipe_file(temporary, content)
            self._fs.mv(temporary, self._at(name))
        except BaseException:
            with suppress(Exception):
                self._fs.rm_file(temporary)
            raise

    def move(self, name: str, to: str) -> None:
        self._fs.makedirs(self._at(to).rsplit("/", 1)[0], exist_ok=True)
        self._fs.mv(self._at(name), self._at(to))

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._at(name))

    def size(self, name: str) -> int:
        return int(self._fs.size(self._at(name)))
