"""`es.accelerate`: one line puts our kernels inside the steering library that a program already uses."""

from __future__ import annotations

import sys
import warnings
from importlib.metadata import PackageNotFoundError, version

from .imports import when_imported
from .libraries import LIBRARIES, OUT_OF_REACH, Library
from .replacing import Replacements

# Libraries that are accelerated now: what was replaced, and how many handles want it so.
_installed: dict[str, tuple[Replacements, int]] = {}


def accelerate(*names: str) -> Acceleration:
    """Run the hot paths of other steering libraries on our kernels; their users' code stays as it is.

        es.accelerate("repeng")                          # from here on
        with es.accelerate("repeng", "dialz"): ...       # inside only
        handle = es.accelerate(); ...; handle.undo()     # every library that is installed and can be

    A library is never imported by this. One that is installed but not imported yet is accelerated the
    moment it is imported. What it does not know how to do faster (an operator of one's own, float64, a
    traced graph) the library's own code does, and that is said once, as a warning. Results are the
    library's; docs/accelerate.md lists where the library alone fails or gives other rows.

    Args:
        names: as on the package index: "repeng", "steering-vectors", "dialz", "lm-eval", "pyvene", "saklas",
            "transformer-lens". None: every one of them that is installed.

    Returns:
        a handle: a context manager, with `undo()` and `report()`. Undone, the libraries are the same
        objects as before.

    Raises:
        ValueError: a name that is not known here.
        ModuleNotFoundError: a library that was named and is not installed.

    Warns:
        UserWarning: a version that this was not tested with, or a library whose hot path cannot run on
            the kernels, with the reason; it stays as it is.
    """
    asked = [_canonical(name) for name in names]
    for name in asked:
        if name not in LIBRARIES and name not in OUT_OF_REACH:
            known = ", ".join([*LIBRARIES, *OUT_OF_REACH])
            raise ValueError(f"accelerate knows no library {name!r}; it knows {known}")
    handle = Acceleration()
    try:
        for name in asked or [*LIBRARIES, *OUT_OF_REACH]:
            handle._add(name, explicit=bool(asked))
    except BaseException:
        handle.undo()
        raise
    return handle


class Acceleration:
    """What one call of `accelerate` switched on; made by it."""

    def __init__(self) -> None:
        self._mine: list[Library] = []
        self._said: dict[str, str] = {}

    def _add(self, name: str, explicit: bool) -> None:
        library = LIBRARIES.get(name)
        try:
            found = version(library.distribution if library else name)
        except PackageNotFoundError:
            if library is None and explicit:
                found = None
            elif explicit:
                raise ModuleNotFoundError(
                    f"{name} is not installed, so there is nothing to accelerate: pip install {name}"
                ) from None
            else:
                return
        if library is None:
            self._said[name] = f"as it is: {OUT_OF_REACH[name]}"
            if explicit:
                warnings.warn(f"{name} is not accelerated: {OUT_OF_REACH[name]}", stacklevel=4)
            return
        if found not in library.tested:
            tested = ", ".join(library.tested)
            self._said[name] = f"as it is: version {found} was not tested, {tested} was"
            warnings.warn(
                f"{name} {found} is not accelerated: this emosteer was tested with {name} {tested}, "
                f"and another version may do other things; install that one, or a newer emosteer",
                stacklevel=4,
            )
            return
        _want(library)
        self._mine.append(library)
        self._said[name] = f"version {found}: {library.what}"

    def undo(self) -> None:
        """Put the libraries back as they were; doing it twice does nothing more."""
        while self._mine:
            _let_go(self._mine.pop())

    def __enter__(self) -> Acceleration:
        return self

    def __exit__(self, *_error: object) -> None:
        self.undo()

    def report(self) -> str:
        """One line a library: what runs on the kernels, or why nothing does."""
        lines = []
        mine = {library.distribution for library in self._mine}
        for name, text in self._said.items():
            waits = name in mine and LIBRARIES[name].module not in sys.modules
            lines.append(f"{name}: {text}" + (" (once it is imported)" if waits else ""))
        return "\n".join(lines) or "no supported library is installed"

    def __repr__(self) -> str:
        return f"Acceleration({', '.join(library.distribution for library in self._mine) or 'nothing'})"


def _canonical(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a library's name must be a string, got {type(name).__name__}")
    return name.lower().replace("_", "-")


def _want(library: Library) -> None:
    replaced, count = _installed.get(library.distribution, (None, 0))
    if replaced is None:
        replaced = Replacements(library.distribution)
        try:
            when_imported(library.module, replaced, library.install)
        except BaseException:
            replaced.undo()
            raise
    _installed[library.distribution] = (replaced, count + 1)


def _let_go(library: Library) -> None:
    replaced, count = _installed.pop(library.distribution)
    if count > 1:
        _installed[library.distribution] = (replaced, count - 1)
    else:
        replaced.undo()
