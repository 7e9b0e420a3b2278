"""GGUF files as folders that transformers reads fast: dequantised once, kept in a cache."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .progress import Progress

_MAGIC = b"GGUF"
_STALE_SECONDS = 24 * 3600

# Hexadecimal digits of a file's SHA-256 that name its folder.
DIGITS = 16
# Beside the weights: each tensor's type and shape, and the bytes of each file.
_SIZES = "emosteer-sizes.json"


def cache_folder() -> Path:
    """`EMOSTEER_CACHE`, else `XDG_CACHE_HOME/emosteer`, else `~/.cache/emosteer`."""
    if os.environ.get("EMOSTEER_CACHE"):
        return Path(os.environ["EMOSTEER_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "emosteer"


def folder_for(file: str, digest: str, dtype: torch.dtype) -> Path:
    """Where the GGUF file of that name and content lies once it is converted."""
    import transformers

    release = ".".join(transformers.__version__.split(".")[:2])
    kind = str(dtype).removeprefix("torch.")
    return cache_folder() / "models" / f"{Path(file).stem}-{digest}-{kind}-transformers{release}"


def converted(source: Path, dtype: torch.dtype, *, expected: str | None = None) -> tuple[Path, str]:
    """The folder that holds `source` dequantised to `dtype`, made if it is not there yet.

    The folder is named by the content of the file, the dtype and the release of transformers that
    made it. It is written under another name and renamed when complete, so what bears the name is
    whole; of two processes that convert at once, the first to finish wins.

    Args:
        source: the GGUF file.
        dtype: of the weights.
        expected: the SHA-256 that the file must have.

    Returns:
        the folder and the first digits of the file's SHA-256.

    Raises:
        ValueError: not a GGUF file, another one than expected, or one that transformers cannot convert.
        ModuleNotFoundError: gguf or accelerate is missing.
    """
    sha = _digest(source)
    if expected is not None and sha != expected:
        raise ValueError(f"{source.name} has SHA-256 {sha}, expected {expected}: install its package again")
    digest = sha[:DIGITS]
    folder = folder_for(source.name, digest, dtype)
    if not folder.is_dir():
        _check_packages()
        folder.parent.mkdir(parents=True, exist_ok=True)
        _drop_stale(folder.parent)
        partial = folder.parent / f".partial-{secrets.token_hex(8)}"
        try:
            _convert(source, dtype, partial)
            _publish(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder, digest


def check(folder: Path) -> None:
    """That a converted folder holds every tensor in the size it was written with.

    Raises:
        ValueError: a file of weights or a tensor that is missing, or has another size.
    """
    note = folder / _SIZES
    # Folders of earlier releases have no note; safetensors checks their own header.
    said = json.loads(note.read_text()) if note.is_file() else None
    sizes = _sizes(folder)
    if not sizes or (said is not None and sizes != said):
        raise ValueError(f"the weights in {folder} are not those that were written")


def _sizes(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            tensors = {name: [one.get_dtype(), list(one.get_shape())] for name, one in parts.items()}
        found[path.name] = {"bytes": path.stat().st_size, "tensors": tensors}
    return found


def _digest(source: Path) -> str:
    with open(source, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{source} is not a GGUF file: it does not begin with {_MAGIC!r}")
        file.seek(0)
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()


def _check_packages() -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"reading a GGUF file for the first time needs {' and '.join(missing)}:\n"
            f"    pip install {' '.join(missing)}"
        )


def _convert(source: Path, dtype: torch.dtype, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    load: Any = AutoModelForCausalLM.from_pretrained  # whose return type depends on what it is asked for
    try:
        with _one_bar(f"converting {source.name}, once"):
            tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
            model, loaded = load(source.parent, dtype=dtype, output_loading_info=True, **where)
    except Exception as error:
        raise ValueError(f"transformers cannot convert {source}: {error}") from error
    # What the file lacks would otherwise be drawn at random.
    lacking = [*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])]
    if lacking:
        raise ValueError(f"{source} has no weights, or of another size, for {', '.join(lacking[:5])}")
    _unmark(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / _SIZES).write_text(json.dumps(_sizes(folder)))


@contextmanager
def _one_bar(what: str) -> Iterator[None]:
    """One bar over the tensors of a file, on a terminal; transformers' own bars, which it draws anywhere, are off."""
    from transformers import modeling_gguf_pytorch_utils as converter
    from transformers.utils import logging

    original, shown = vars(converter).get("tqdm"), logging.is_progress_bar_enabled()

    def counted(tensors: Any, **_ignored: Any) -> Iterator[Any]:
        bar.begin(what, len(tensors))
        for tensor in tensors:
            yield tensor
            bar.advance(1)

    with Progress(True) as bar:
        logging.disable_progress_bar()
        if original is not None:
            converter.tqdm = counted
        try:
            yield
        finally:
            if original is not None:
                converter.tqdm = original
            if shown:
                logging.enable_progress_bar()


def _unmark(model: Any) -> None:
    """The weights are plain by now; save_pretrained refuses a model that still says GGUF."""
    for owner, names in (
        (model, ("is_quantized", "quantization_method", "hf_quantizer")),
        (model.config, ("quantization_config", "_pre_quantization_dtype")),
    ):
        for name in names:
            vars(owner).pop(name, None)


def _publish(partial: Path, folder: Path) -> None:
    for path in partial.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process was first, and its folder is as good
            raise


def _drop_stale(parent: Path) -> None:
    """What a killed conversion left behind."""
    for path in parent.glob(".partial-*"):
        try:
            old = time.time() - path.stat().st_mtime > _STALE_SECONDS
        except FileNotFoundError:
            continue
        if old:
            shutil.rmtree(path, ignore_errors=True)
