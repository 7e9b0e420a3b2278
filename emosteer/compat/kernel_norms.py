"""RMS norms of a model on the kernel for as long as something steers it: pays for the steering, and more."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from emosteer.models.norms import RmsNorm, recognise
from emosteer.models.patching import Patches
from emosteer.ops import backends

from .replacing import Replacements

_recognised: WeakKeyDictionary[nn.Module, tuple[torch.dtype | None, list[RmsNorm]]] = WeakKeyDictionary()


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
            patches = _patched(model)
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


def _patched(model: nn.Module) -> Patches:
    patches = Patches()
    for norm in _rms_norms(model):
        if "forward" not in norm.module.__dict__:  # else somebody has one of his own there
            patches.replace(norm.module, "forward", partial(_forward, norm, patches))
    return patches


def _rms_norms(model: nn.Module) -> list[RmsNorm]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    known = _recognised.get(model)
    if known is None or known[0] != dtype:
        verdicts = [recognise(m) for m in model.modules() if "norm" in type(m).__name__.lower()]
        known = _recognised[model] = (dtype, [v for v in verdicts if isinstance(v, RmsNorm)])
    return known[1]


def _forward(norm: RmsNorm, patches: Patches, _original: Callable) -> Callable:
    """The norm's `forward`, bound to its module, so that a deep copy of the model computes with its own weight."""
    eps, offset = norm.eps, norm.weight_offset

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight = self._parameters["weight"]
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or not patches.active
            or args
            or kwargs
            or type(x) is not Tensor
            or x.dtype is not weight.dtype
            or x.stride(-1) != 1
        ):
            return type(self).forward(self, x, *args, **kwargs)
        return backends.of(x.device).rms_norm(x, weight, eps, offset)

    return MethodType(forward, norm.module)
