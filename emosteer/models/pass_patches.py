"""Methods that are replaced only while a pass runs that wants them."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from torch import nn

from .patching import ABSENT, Replacement, bury


class PassPatches:
    """The `forward` of some modules, replaced from `enter` to `exit`.

    Compiled code checks before each step which methods the modules have of their own, so a method that only
    eager passes want is not there in between. Passes of several threads may overlap; the last one to exit puts
    back what was there.

    Args:
        forwards: module and what stands in for its `forward`.
    """

    def __init__(self, forwards: Iterable[tuple[nn.Module, Replacement]] = ()) -> None:
        self._lock = threading.Lock()
        self._running = 0
        self._places: list[tuple[nn.Module, dict[str, Any], Replacement, Any]] = []
        for module, forward in forwards:
            before = module.__dict__.get("forward", ABSENT)
            forward.installed(module, "forward", before, module.forward)
            self._places.append((module, module.__dict__, forward, before))

    @property
    def possible(self) -> bool:
        """Whether nobody has compiled these modules or replaced their `forward` in the meantime."""
        for module, own, forward, before in self._places:
            now = own.get("forward", ABSENT)
            if (now is not before and now is not forward) or module._compiled_call_impl is not None:
                return False
        return True

    def enter(self) -> None:
        """A pass begins."""
        with self._lock:
            self._running += 1
            if self._running == 1:
                for _, own, forward, _ in self._places:
                    own["forward"] = forward

    def exit(self) -> None:
        """A pass that began has ended."""
        with self._lock:
            if self._running == 1:
                self._put_back()
            self._running = max(self._running - 1, 0)

    def undo(self) -> None:
        """Put everything back for good, whoever is in a pass."""
        with self._lock:
            if self._running:
                self._put_back()
            self._running = 0
            for _, _, forward, _ in self._places:
                forward.gone()
            self._places = []

    def _put_back(self) -> None:
        kept = []
        for place in self._places:
            _, own, forward, before = place
            if own.get("forward", ABSENT) is not forward:  # somebody's own lies on top, and calls through
                bury(forward)
                continue
            if before is ABSENT:
                del own["forward"]
            else:
                own["forward"] = before
            kept.append(place)
        self._places = kept
