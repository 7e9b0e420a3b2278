"""GGUF files as folders that transformers reads fast: dequantised once, kept in a cache."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import torch

_MAGIC = b"GGUF"
_STALE_SECONDS = 24 * 3600


def cache_folder() -> Path:
    """`EMOSTEER_CACHE`, else `XDG_CACHE_HOME/emosteer`, else `~/.cache/emosteer`."""
    if os.environ.get("EMOSTEER_CACHE"):
        return Path(os.environ["EMOSTEER_CACHE"]).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "emosteer"


def converted(source: Path, dtype: torch.dtype) -> tuple[Path, str]:
    """The folder that holds `source` dequantised to `dtype`, made if it is not there yet.

    The folder is named by the content of the file, the dtype and the release of transformers that
    made it. It is written under another name and renamed when complete, so what bears the name is
    whole; of two processes that convert at once, the first to finish wins.

    Returns:
        the folder and the first 16 hexadecimal digits of the file's SHA-256.

    Raises:
        ValueError: not a GGUF file, or one that transformers cannot convert.
        ModuleNotFoundError: gguf or accelerate is missing.
    """
    import transformers

    digest = _digest(source)
    release = ".".join(transformers.__version__.split(".")[:2])
    kind = str(dtype).removeprefix("torch.")
    folder = cache_folder() / "models" / f"{source.stem}-{digest}-{kind}-transformers{release}"
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


def _digest(source: Path) -> str:
    with open(source, "rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{source} is not a GGUF file: it does not begin with {_MAGIC!r}")
        file.seek(0)
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()[:16]


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
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=dtype, **where)
    except Exception as error:
        raise ValueError(f"transformers cannot convert {source}: {error}") from error
    _unmark(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


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
