"""Replacing an instance's `forward`, and putting back exactly what was there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_ABSENT = object()

# Replacements that were undone while somebody else's lay on top of them, and what they had replaced.
_buried: dict[Any, Any] = {}


class Patches:
    """Replaced attributes of instances, undone in reverse order.

    Only instances are touched, never classes, so two models of one class do not meet. An attribute
    that the instance did not have is deleted again; one that it had comes back as the same object.
    Where somebody else has patched the same attribute in the meantime and is still there, the
    replacement stays in their chain, calling straight through (`active` is False then), until they
    are gone too.
    """

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []
        self.active = True

    def replace(self, owner: Any, name: str, make: Callable[[Callable], Callable]) -> None:
        """Set `owner.name` to `make(what it was)`."""
        before = owner.__dict__.get(name, _ABSENT)
        original = getattr(owner, name)
        replacement = make(original)

        if isinstance(owner, nn.Module):
            # nn.Module.__setattr__ would look for parameters; __dict__ is where instance methods live.
            owner.__dict__[name] = replacement
        else:
            setattr(owner, name, replacement)
        self._undo.append((owner, name, before, replacement))

    def undo(self) -> None:
        """Put everything back."""
        self.active = False
        while self._undo:
            owner, name, before, replacement = self._undo.pop()
            if owner.__dict__.get(name, _ABSENT) is not replacement:
                _buried[replacement] = before
                continue
            while before in _buried:
                before = _buried.pop(before)
            if before is _ABSENT:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before


def unwrap(model: Any) -> nn.Module:
    """The module behind `torch.compile`'s wrapper."""
    inner = getattr(model, "_orig_mod", model)
    if not isinstance(inner, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    return inner


def first_tensor(output: Any) -> torch.Tensor | None:
    """The hidden state of a block's output: the output itself, or the first of a tuple."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], torch.Tensor):
        return output[0]
    return None


def with_first_tensor(output: Any, hidden: torch.Tensor) -> Any:
    """`output` with its hidden state replaced."""
    if isinstance(output, torch.Tensor):
        return hidden
    return type(output)((hidden, *output[1:]))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module out of training mode, and back exactly those that were in it."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
