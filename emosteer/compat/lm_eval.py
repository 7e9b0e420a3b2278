"""lm-eval: the model `steered` adds and clamps on the kernels, and finds its modules without a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import lm_eval.models.hf_steered as hf_steered
import torch
from torch import Tensor, nn

from emosteer.models.patching import first_tensor, with_first_tensor

from .edits import Edit, finite, watched
from .kernel_norms import KernelNorms
from .replacing import Replacements

# What a steering function of the library's was recognised as; it is a partial that never changes.
_edits: WeakKeyDictionary[Callable, Edit | None] = WeakKeyDictionary()


def install(replaced: Replacements) -> None:
    """Replace the context manager that hooks the model at every call."""
    norms = KernelNorms(replaced)
    replaced.replace(hf_steered, "steer", lambda original: _steer(original, replaced, norms))


def _steer(original: Callable, replaced: Replacements, norms: KernelNorms) -> Callable:
    @contextmanager
    def steer(model: Any, hook_to_steer: dict[str, Callable]) -> Iterator[None]:
        if not replaced.on:
            with original(model, hook_to_steer):
                yield
            return
        base = model.base_model
        modules = [module for name in hook_to_steer if (module := _submodule(base, name)) is not None]
        if len(modules) < len(hook_to_steer):
            raise ValueError(f"Not all hookpoints could be resolved: {list(hook_to_steer)}")
        hooks: list[Any] = []
        try:
            steers = False
            for module, steered_by in zip(modules, hook_to_steer.values()):
                edit = _edit(steered_by, replaced)
                steers = steers or edit is not None
                hooks.append(module.register_forward_hook(_hook(steered_by, edit)))
            if steers:
                norms.keep(model)
            yield
        finally:
            for hook in hooks:
                hook.remove()

    return steer


def _submodule(module: nn.Module | None, name: str) -> nn.Module | None:
    """`module.get_submodule(name)`, None where there is none: this runs for every module in every pass."""
    for part in name.split(".") if name else ():
        module = None if module is None else module._modules.get(part)
    return module


def _hook(steered_by: Callable, edit: Edit | None) -> Callable:
    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output if type(output) is Tensor else first_tensor(output)
        if hidden is not None and edit is not None and not torch.compiler.is_compiling():
            in_place = not watched(module, own_hooks=1) and not _handed_on(hidden, inputs)
            if in_place and edit.again(hidden):
                return None
            if edit.fits(hidden):
                steered = edit(hidden, in_place=in_place)
                return None if steered is hidden else with_first_tensor(output, steered)
        if isinstance(output, tuple):
            return (steered_by(output[0]), *output[1:])
        return steered_by(output)

    return hook


def _handed_on(hidden: Tensor, inputs: tuple) -> bool:
    """Whether a module returned its input (dropout, identity): what others still read must not change."""
    return any(isinstance(given, Tensor) and given.data_ptr() == hidden.data_ptr() for given in inputs)


def _edit(steered_by: Callable, replaced: Replacements) -> Edit | None:
    """What one of the library's steering functions does, None where the kernels have nothing for it."""
    if not isinstance(steered_by, partial):
        return None
    if steered_by not in _edits:
        _edits[steered_by] = _recognised(steered_by, replaced)
    return _edits[steered_by]


def _recognised(steered_by: partial, replaced: Replacements) -> Edit | None:
    model, given = hf_steered.SteeredModel, steered_by.keywords
    of = getattr(steered_by.func, "__func__", None)
    if given.get("head_index") is not None:
        replaced.say_once("head_index steers one attention head, not the residual stream")
        return None
    if of is model.add.__func__:
        vector = given["vector"]
        return Edit(vector[None]) if vector.ndim == 1 and finite(vector) else None
    if of is model.clamp.__func__:
        direction, bias = given["direction"], given.get("bias")
        if direction.ndim != 1 or not finite(direction):
            return None
        target = float(given["value"])
        if bias is not None:  # (x − b) + d (t − <x − b, d>) + b puts the projection of x at t + <b, d>
            target += float(bias.double() @ direction.double())
        return Edit(direction[None], push=False, low=target, high=target)
    replaced.say_once("a steering function is your own")
    return None
