"""saklas: ablations, and pushes with them, are one read and one write; norms on the kernel while it steers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import saklas.core.hooks as hooks
import torch
from torch import Tensor, nn

from emosteer.ops import SteerTable

from .edits import Edit, finite
from .kernel_norms import Hold, KernelNorms
from .replacing import Replacements

_PREPARED = "_emosteer_edit"


def install(replaced: Replacements) -> None:
    """Replace what a steered block runs, and note from when to when blocks are steered."""
    norms = KernelNorms(replaced)
    holds: WeakKeyDictionary[Any, Hold] = WeakKeyDictionary()
    hook, manager = hooks.SteeringHook, hooks.SteeringManager
    replaced.replace(hook, "recompose", lambda original: _recompose(original, replaced))
    replaced.replace(hook, "hook_fn", lambda original: _hook_fn(original, replaced))
    replaced.replace(manager, "apply_to_model", lambda original: _apply(original, replaced, norms, holds))
    for name in ("clear_all", "detach_transient_hooks"):
        replaced.replace(manager, name, lambda original: _end(original, holds))


def _apply(original: Callable, replaced: Replacements, norms: KernelNorms, holds: Any) -> Callable:
    def apply_to_model(self: Any, model_layers: Any, device: torch.device, dtype: torch.dtype) -> None:
        original(self, model_layers, device, dtype)
        _release(holds, self)
        if replaced.on and self.hooks and isinstance(model_layers, nn.Module):
            holds[self] = norms.hold(model_layers)

    return apply_to_model


def _end(original: Callable, holds: Any) -> Callable:
    def end(self: Any) -> None:
        _release(holds, self)
        original(self)

    return end


def _release(holds: Any, manager: Any) -> None:
    hold = holds.pop(manager, None)
    if hold is not None:
        hold.remove()


def _recompose(original: Callable, replaced: Replacements) -> Callable:
    def recompose(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.__dict__.pop(_PREPARED, None)
        # A push alone is one addition in place already, of a vector that was made here.
        if replaced.on and self.manifold_groups and self._const_single is None:
            edit = _edit(self, replaced)
            if edit is not None:
                self.__dict__[_PREPARED] = edit

    return recompose


def _edit(hook: Any, replaced: Replacements) -> Edit | None:
    """What the hook does to every row at every step, None where the kernels have nothing for it.

    With an orthonormal basis B, projections q = B·(x − mean) and a coefficient c an axis,

        y = x + along·targetᵀB − Σ_j c_j q_j B_j

    so where c is 1 the projection on an axis is put where that of the mean is, and then comes the push.
    """
    if hook._single_affine_fast is None:
        replaced.say_once("a curved manifold, a trigger or a gate decides at every token anew")
        return None
    subspace, _domain, target, _origin, along, _onto, mean, kappa = hook._single_affine_fast
    basis = subspace.basis.double()
    ablated = torch.as_tensor(kappa, device=basis.device).double().expand(len(basis)) * along
    whole = (ablated - 1).abs() < 1e-6
    if not bool((whole | (ablated == 0)).all()):
        replaced.say_once("an ablation is partial")
        return None
    push = along * (target.double() @ basis)
    rows = torch.cat([basis[whole], push[None]])
    if not (finite(rows) and finite(mean)):
        return None
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    held, pushes = len(rows) - 1, bool(length[-1] > 0)
    with torch.inference_mode(False):
        directions = (rows / length)[: held + pushes].float().clone()
        table = SteerTable.empty(1, held + pushes, device=directions.device)
        table.direction[0] = torch.arange(held + pushes, dtype=torch.int32)
        table.low[0, :held] = table.high[0, :held] = mean[whole].float()
        if pushes:
            table.strength[0, held] = length[-1, 0]
    return Edit.of(directions, table)


def _hook_fn(original: Callable, replaced: Replacements) -> Callable:
    def hook_fn(self: Any, module: Any, input: Any, output: Any) -> Any:
        edit = self.__dict__.get(_PREPARED)
        if edit is None or not replaced.on or torch.compiler.is_compiling():
            return original(self, module, input, output)
        hidden = output if isinstance(output, Tensor) else output[0]
        if edit.again(hidden):
            return output
        # The library writes in place, so where autograd watches that is left to it.
        if not edit.fits(hidden) or hidden.requires_grad or hidden.stride(-1) != 1:
            return original(self, module, input, output)
        edit(hidden, in_place=True)
        return output

    return hook_fn
