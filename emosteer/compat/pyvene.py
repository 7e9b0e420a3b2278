"""pyvene: addition and subtraction of a constant at a module's output, in place of gather, add and scatter."""

from __future__ import annotations

import threading
from collections.abc import Callable
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import pyvene.models.intervenable_base as base
import torch
from pyvene.models.constants import CONST_OUTPUT_HOOK
from pyvene.models.interventions import AdditionIntervention, SubtractionIntervention
from pyvene.models.modeling_utils import HandlerList, type_to_module_mapping
from torch import Tensor, nn

from emosteer.models.patching import first_tensor, with_first_tensor
from emosteer.ops import checks

from .edits import Edit, finite
from .kernel_norms import KernelNorms
from .replacing import Replacements

NO_ROW = -1
_edits: WeakKeyDictionary[nn.Module, tuple[int | None, tuple, Edit | None]] = WeakKeyDictionary()
_SIGNS = {AdditionIntervention: 1.0, SubtractionIntervention: -1.0}


def install(replaced: Replacements) -> None:
    """Replace the making of the hooks that set activations, and the search for hooks before and after a pass."""
    norms = KernelNorms(replaced)
    model = base.IntervenableModel
    replaced.replace(model, "_intervention_setter", lambda original: _setter(original, replaced, norms))
    replaced.replace(model, "_remove_forward_hooks", lambda original: _remover(original, replaced))


def _remover(original: Callable, replaced: Replacements) -> Callable:
    def _remove_forward_hooks(self: Any) -> None:
        """Every hook of every module, as the library does, without making up the modules' names."""
        if not replaced.on:
            return original(self)
        modules = [self.model]
        for module in modules:  # grows on the way
            if module._modules:
                modules += [child for child in module._modules.values() if child is not None]
            if module._forward_hooks:
                module._forward_hooks.clear()
            if module._forward_pre_hooks:
                module._forward_pre_hooks.clear()

    return _remove_forward_hooks


def _setter(original: Callable, replaced: Replacements, norms: KernelNorms) -> Callable:
    def _intervention_setter(
        self: Any, keys: Any, unit_locations_base: Any, subspaces: Any, intervention_additional_kwargs: Any
    ) -> Any:
        edit = None
        if replaced.on and len(keys) == 1 and not intervention_additional_kwargs:
            edit = _edit(self, keys[0], None if subspaces is None else subspaces[0], replaced)
        if edit is None:
            return original(self, keys, unit_locations_base, subspaces, intervention_additional_kwargs)
        (key,), (locations,) = keys, unit_locations_base
        norms.keep(self.model)
        hook = _hook(self, key, edit, locations)
        return HandlerList([self.intervention_hooks[key](hook, with_kwargs=True)])

    return _intervention_setter


def _edit(model: Any, key: Any, subspace: Any, replaced: Replacements) -> Edit | None:
    """What an intervention does to whole rows of a module's output, None where it does something else."""
    intervention = model.interventions[key]
    source = getattr(intervention, "source_representation", None)
    if type(intervention) not in _SIGNS or source is None:
        return None  # another intervention, or one that takes its vector from another text
    # The hooks are made anew at every pass; what they do seldom changes.
    version = None if source.is_inference() else source._version
    given = (model, source, intervention.interchange_dim, model.representations[key], subspace)
    known = _edits.get(intervention)
    if known is not None and known[0] == version is not None and all(map(is_, known[1], given)):
        return known[2]
    edit = None
    reason = _obstacle(model, key, intervention, subspace)
    if reason is not None:
        replaced.say_once(reason)
    else:
        vector = source.reshape(1, -1) * _SIGNS[type(intervention)]
        edit = Edit(vector) if finite(vector) else None
    _edits[intervention] = (version, given, edit)
    return edit


def _obstacle(model: Any, key: Any, intervention: Any, subspace: Any) -> str | None:
    """Why the kernels cannot do it."""
    source, dim = intervention.source_representation, intervention.interchange_dim
    place = model.representations[key]
    known = type_to_module_mapping.get(model.model_type, {}).get(place.component)
    dtype = next((p.dtype for p in model.model.parameters() if p.is_floating_point()), torch.float32)
    reasons = {
        "the intervention acts on a part of the width": subspace is not None
        or (dim is not None and int(dim) < source.shape[-1]),
        "the intervention acts on one attention head": known is not None and len(known) > 2,
        "the intervention acts on a module's input": model.intervention_hooks[key].__name__
        != CONST_OUTPUT_HOOK,
        f"the unit is {place.unit!r}": place.unit != "pos",
        "the source has one vector a token": source.numel() != source.shape[-1],
        "the source wants a gradient": source.requires_grad,
        "the intervention is linked to another": key in model._intervention_reverse_link,
        "the model is recurrent or the intervention an adaptor": not model.is_model_stateless
        or model.as_adaptor,
        f"the model computes in {dtype}": dtype not in checks.DTYPES,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _hook(model: Any, key: Any, edit: Edit, locations: Any) -> Callable:
    state = model._intervention_state[key]

    def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
        if locations is not None and model._is_generation:
            counter = model._key_setter_call_counter
            prompt = counter[key] == 0
            if prompt or not model._intervene_on_prompt:
                counter[key] += 1
            if prompt != bool(model._intervene_on_prompt):
                return None
        hidden = output if type(output) is Tensor else first_tensor(output)
        if hidden is not None and locations is None and edit.again(hidden):
            state.inc_setter_version()
            return None
        if hidden is None or not edit.fits(hidden):
            shape = "no tensor" if hidden is None else f"{hidden.dtype} of shape {list(hidden.shape)}"
            raise TypeError(
                f"the module of {key} returned {shape}, which the kernels cannot add to; undo accelerate('pyvene')"
            )
        token_row = None
        if locations is not None:
            batch, length = hidden.shape[:2]
            token_row = _rows_at(locations, batch, length, hidden.device)
        state.inc_setter_version()
        steered = edit(hidden, token_row, in_place=True)
        return None if steered is hidden else with_first_tensor(output, steered)

    return hook


class _Last(threading.local):
    """The positions of the last pass and their rows: all interventions have the same, and so have decoding steps."""

    locations: list | None = None
    where: tuple = ()
    token_row: Tensor | None = None


_last = _Last()


def _rows_at(locations: Any, batch: int, length: int, device: torch.device) -> Tensor:
    where = (batch, length, device)
    if _last.token_row is None or _last.where != where or _last.locations != locations:
        _last.token_row = _token_row(locations, *where)
        _last.where, _last.locations = where, [list(row) for row in locations]
    return _last.token_row


def _token_row(locations: Any, batch: int, length: int, device: torch.device) -> Tensor:
    """int32 `[B, T]` from a list of positions for each row; a batch that was grown keeps each row's."""
    at = torch.as_tensor(locations)
    if at.ndim != 2 or batch % len(at):
        raise ValueError(
            f"unit_locations names positions for {len(at)} rows, which do not divide evenly over a batch of {batch}"
        )
    if int(at.min()) < 0 or int(at.max()) >= length:
        raise IndexError(f"unit_locations names position {at.tolist()} of {length} tokens")
    token_row = torch.full((len(at), length), NO_ROW, dtype=torch.int32)
    token_row.scatter_(1, at, 0)
    return token_row.repeat_interleave(batch // len(at), 0).contiguous().to(device)
