"""What torch before 2.7 cannot say of a trace."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable)
_TAKES_REASON = "reason" in inspect.signature(torch.compiler.disable).parameters


def untraced(function: _Function, reason: str) -> _Function:
    """A function that `torch.compile` leaves alone, and why, which torch from 2.7 on can say."""
    if _TAKES_REASON:
        return torch.compiler.disable(function, reason=reason)
    return torch.compiler.disable(function)


def _exporting() -> bool:
    """Tracing, and not by dynamo: in torch 2.6 only `torch.export.export(…, strict=False)` does that."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


# Whether `torch.export` is at work.
is_exporting = getattr(torch.compiler, "is_exporting", _exporting)
