"""Replacing an instance's `forward`, and putting back exactly what was there."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn

# What an instance has of its own where it has nothing.
ABSENT: Any = object()

# Replacements that were undone while somebody else's lay on top of them, and what they had replaced.
_buried: dict[Any, Any] = {}


def buried(replacement: Any) -> bool:
    """Whether a replacement that was undone is still called by somebody else's."""
    return replacement in _buried


def bury(replacement: Replacement) -> None:
    """Note that somebody else's still calls through a replacement that is gone."""
    _buried[replacement] = replacement.before


class Replacement:
    """A callable that stands in for a method of an instance.

    It belongs to that one instance: a deep copy of the owner, or one that was pickled, gets the method
    that it would have without the replacement, bound to itself.
    """

    owner: Any = None
    name: str = ""
    before: Any = ABSENT
    original: Any = None

    def __init__(self, function: Callable | None = None) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.function is not None  # set, or __call__ is another
        return self.function(*args, **kwargs)

    def installed(self, owner: Any, name: str, before: Any, original: Callable) -> None:
        """Note what is replaced: `before` is what the instance had of its own, `original` what was called."""
        self.owner, self.name, self.before, self.original = owner, name, before, original

    def gone(self) -> None:
        """Let go of what was replaced."""
        self.owner, self.before, self.original = None, ABSENT, _left_behind

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)  # generate asks which arguments a model takes

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self.before is not ABSENT:
            return copy.deepcopy(self.before, memo)
        if id(self.owner) not in memo:
            return self  # the callable alone was copied, not what it belongs to
        return MethodType(getattr(type(self.owner), self.name), memo[id(self.owner)])

    def __reduce__(self) -> Any:
        if self.before is not ABSENT:
            return _itself, (self.before,)
        return getattr, (self.owner, self.name)


def _itself(value: Any) -> Any:
    return value


def _left_behind(*_args: Any, **_kwargs: Any) -> Any:
    raise RuntimeError(
        "this method was a steering's, which has been left: a shallow copy of the model (copy.copy) or a stored "
        "`model.forward` still holds it. Copy with copy.deepcopy, or after leaving the steering"
    )


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
        self._also: list[Callable[[], None]] = []
        self.active = True

    def also(self, undo: Callable[[], None]) -> None:
        """Have `undo` put back something more."""
        self._also.append(undo)

    def replace(self, owner: Any, name: str, make: Callable[[Callable], Callable]) -> None:
        """Set `owner.name` to `make(what it was)`."""
        before = owner.__dict__.get(name, ABSENT)
        original = getattr(owner, name)
        replacement = make(original)
        if not isinstance(replacement, Replacement):
            replacement = Replacement(replacement)
        replacement.installed(owner, name, before, original)
        if isinstance(owner, nn.Module):
            # nn.Module.__setattr__ would look for parameters; __dict__ is where instance methods live.
            owner.__dict__[name] = replacement
        else:
            setattr(owner, name, replacement)
        self._undo.append((owner, name, before, replacement))

    def undo(self) -> None:
        """Put everything back."""
        self.active = False
        while self._also:
            self._also.pop()()
        while self._undo:
            owner, name, before, replacement = self._undo.pop()
            if owner.__dict__.get(name, ABSENT) is not replacement:
                bury(replacement)
                continue
            replacement.gone()
            while isinstance(before, Replacement) and before in _buried:
                dug = before
                before = _buried.pop(dug)
                dug.gone()
            if before is ABSENT:
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
