"""Doing something to a module once somebody imports it, without importing it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .replacing import Replacements


def when_imported(module: str, replaced: Replacements, install: Callable[[Replacements], None]) -> None:
    """Call `install(replaced)` now if the module has been imported, else right after it is.

    Undoing `replaced` before that calls the whole thing off.
    """
    known = sys.modules.get(module)
    if known is not None:
        install(replaced)
        return
    finder = _Waiting(module, lambda: install(replaced))
    sys.meta_path.insert(0, finder)
    replaced.at_undo(finder.leave)


class _Waiting(MetaPathFinder):
    """Stands first in line of the finders and lets the others find everything."""

    def __init__(self, module: str, then: Callable[[], None]) -> None:
        self.module, self.then = module, then

    def leave(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        for finder in [f for f in sys.meta_path if f is not self]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Then(spec.loader, self)
                return spec
        return None


class _Then(Loader):
    """The module's own loader, and one thing to do after it."""

    def __init__(self, loader: Any, waiting: _Waiting) -> None:
        self._loader, self._waiting = loader, waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is to know its own loader: pickling, resources and reloads ask for it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._waiting.leave()
        self._waiting.then()
