"""The last block needs no more of most tokens than their keys and values: the rest of it for the wanted ones only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from emosteer.models.patching import Patches


class Trimming:
    """Modules of the last block that may run on the wanted tokens alone.

    Which ones is not looked up but tried (`find`): those that turn `[B, n, ·]` into `[B, n, ·]` and
    whose outcome for the other tokens no wanted one reads: with NaN in its place nothing changes.
    In use the other tokens get zeros.

    Attributes:
        wanted: numbers of the tokens in the flattened batch, None for all.
        modules: those that were found to be so.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.wanted: Tensor | None = None
        self.modules: list[nn.Module] = []
        self._others = 0.0
        self._last: nn.Module | None = None

    def patch(self, patches: Patches) -> None:
        """Patch every module inside the block; those that are not in `modules` run as they are."""
        for module in self.block.modules():
            if module is not self.block:
                patches.replace(module, "forward", partial(self._forward, module))

    def find(self, agrees: Callable[[], bool]) -> None:
        """Keep the modules, looked for from the outside in, with which `agrees()`."""
        self.modules, self._others = [], math.nan
        try:
            self._try(self.block.children(), agrees)
        finally:
            self._others = 0.0

    def _try(self, modules: Iterable[nn.Module], agrees: Callable[[], bool]) -> None:
        for module in modules:
            if next(module.parameters(), None) is None:  # picking rows out costs more than it does
                continue
            self.modules.append(module)
            self._last = None
            try:
                good = agrees() and self._last is module
            except Exception:  # it does more than turn rows into rows
                good = False
            if not good:
                self.modules.remove(module)
                self._try(module.children(), agrees)

    def _forward(self, own: nn.Module, forward: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self.wanted is None or kwargs or len(args) != 1 or own not in self.modules:
                return forward(*args, **kwargs)
            x: Tensor = args[0]
            if not isinstance(x, Tensor) or x.ndim != 3:
                return forward(x)
            few = forward(x.reshape(1, -1, x.shape[-1])[:, self.wanted])
            whole = few.new_full((x.shape[0] * x.shape[1], few.shape[-1]), self._others)
            whole[self.wanted] = few[0]
            if self.modules[-1] is own:
                self._last = own
            return whole.view(*x.shape[:2], -1)

        return run
