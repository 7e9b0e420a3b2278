"""Which implementation runs an operation: the fastest for the tensor's device, or the one asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import overload

import torch

NAMES = ("reference", "cpu", "triton", "cuda")

_asked: ContextVar[str | None] = ContextVar("emosteer_backend", default=None)
asked_here = _asked.get


@overload
def backend(name: None = None) -> str: ...
@overload
def backend(name: str) -> AbstractContextManager[str]: ...
def backend(name: str | None = None) -> str | AbstractContextManager[str]:
    """Read or choose the backend of the operations.

    `backend()` returns the name of the one asked for, or "auto". `with backend("reference"):` uses
    that one for every operation inside, in this thread or task. The environment variable
    EMOSTEER_BACKEND chooses for the whole process.

    Raises:
        ValueError: no backend of that name.
        RuntimeError: it cannot run here; the message says why and what to do.
    """
    if name is None:
        return asked() or "auto"
    require(name)
    return _using(name)


@contextmanager
def _using(name: str) -> Iterator[str]:
    token = _asked.set(None if name == "auto" else name)
    try:
        yield name
    finally:
        _asked.reset(token)


def asked() -> str | None:
    """The backend that was asked for by name, None for the fastest."""
    return _asked.get() or _from_environment()


@lru_cache(maxsize=1)
def _from_environment() -> str | None:
    name = os.environ.get("EMOSTEER_BACKEND", "auto") or "auto"
    require(name, "EMOSTEER_BACKEND")
    return None if name == "auto" else name


def require(name: str, argument: str = "backend") -> None:
    """Raise unless `name` is a backend that can run here."""
    if name == "auto":
        return
    if name not in NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(NAMES)} or auto, got {name!r}")
    if reason := unavailable(name):
        raise RuntimeError(f"{argument}={name!r} cannot run here: {reason}")


@lru_cache(maxsize=len(NAMES))
def unavailable(name: str) -> str | None:
    """Why a backend cannot run here, None if it can."""
    if find_spec(f"emosteer.ops.{name}") is None:
        return "this version of emosteer does not have it"
    return import_module(f"emosteer.ops.{name}").unavailable()


_MODULES: dict[tuple[str | None, str], ModuleType] = {}


def _module(name: str | None, device_type: str) -> ModuleType:
    if name is None:
        name = _fastest(device_type)
    return import_module(f"emosteer.ops.{name}")


def _fastest(device_type: str) -> str:
    if device_type == "cpu":
        if reason := unavailable("cpu"):
            raise RuntimeError(f"the cpu backend cannot run: {reason}")
        return "cpu"
    if device_type == "cuda" and not all(unavailable(name) for name in ("cuda", "triton")):
        return "gpu"  # which chooses between the two by operation and size
    return "reference"


def of(device: torch.device) -> ModuleType:
    """The module that runs an operation on tensors of `device`."""
    key = _asked.get(), device.type
    return _MODULES.get(key) or _MODULES.setdefault(key, _module(key[0] or _from_environment(), device.type))
