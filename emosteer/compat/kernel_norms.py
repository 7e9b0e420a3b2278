"""RMS norms of a model on the kernel for as long as something steers it: pays for the steering, and more."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from torch import nn

from emosteer.models.kernel_norms import run_norms_on_kernel
from emosteer.models.patching import Patches

from .replacing import Replacements


class KernelNorms:
    """The models whose norms run on the kernel, and who wants them to.

    Args:
        replaced: undone with it.
    """

    def __init__(self, replaced: Replacements) -> None:
        self._replaced = replaced
        self._held: WeakKeyDictionary[nn.Module, tuple[int, Patches]] = WeakKeyDictionary()
        self._kept: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
        replaced.at_undo(self._undo)

    def hold(self, model: nn.Module) -> Hold:
        """Run the norms of `model` on the kernel until the hold is removed."""
        count, patches = self._held.get(model, (0, None))
        if patches is None:
            patches = Patches()
            run_norms_on_kernel(model, patches)
        self._held[model] = (count + 1, patches)
        return Hold(self, model)

    def keep(self, model: nn.Module) -> None:
        """Hold until all is undone: for libraries that hook a model anew at every pass."""
        if model not in self._kept:
            self._kept[model] = True
            self.hold(model)

    def _release(self, model: nn.Module) -> None:
        count, patches = self._held.pop(model, (0, None))
        if patches is None:
            return
        if count > 1:
            self._held[model] = (count - 1, patches)
        else:
            patches.undo()

    def _undo(self) -> None:
        for _, patches in list(self._held.values()):
            patches.undo()
        self._held.clear()
        self._kept.clear()


class Hold:
    """One wish; removed like a hook's handle."""

    def __init__(self, norms: KernelNorms, model: nn.Module) -> None:
        self._norms, self._model = norms, model
        self._there = True

    def remove(self) -> None:
        if self._there:
            self._there = False
            self._norms._release(self._model)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_error: object) -> None:
        self.remove()
