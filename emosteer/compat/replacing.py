"""Replacing attributes of another library's modules and classes, and putting back the same objects."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any


class Replacements:
    """Attributes of a library that were replaced.

    A replacement is given the original and must call it when `on` is False: after `undo` it may live on
    in a hook that a model still carries, or under a patch that somebody else laid over it.

    Args:
        library: its name, for messages.
    """

    def __init__(self, library: str) -> None:
        self.library = library
        self.on = True
        self._undo: list[Callable[[], None]] = []
        self._said: set[str] = set()

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        """Set `owner.name` to `make(what it was)`; `owner` is a module or a class that defines it itself."""
        before = vars(owner)[name]
        replacement = make(before)
        setattr(owner, name, replacement)

        def undo() -> None:
            if vars(owner).get(name) is replacement:
                setattr(owner, name, before)

        self._undo.append(undo)

    def at_undo(self, action: Callable[[], None]) -> None:
        """Do something more when all is put back."""
        self._undo.append(action)

    def undo(self) -> None:
        """Put everything back, last first."""
        self.on = False
        while self._undo:
            self._undo.pop()()

    def say_once(self, what: str) -> None:
        """Warn that the library's own code runs, and why; once for each reason."""
        if what not in self._said:
            self._said.add(what)
            warnings.warn(
                f"{self.library}: {what}, so the library's own code runs instead of the kernels", stacklevel=3
            )
