"""How other libraries steer, for comparison: what is nearest to a vector a row with the norm kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import torch

import emosteer as es
from emosteer.models.blocks import find_decoder

Enter = Callable[[], AbstractContextManager]


def plain_hook(
    model, bank: es.Bank, rows: int, strength: float, layers: Sequence[int] | None = None
) -> ExitStack:
    """The usual way: one forward hook a block, in plain torch; a vector a row, norm kept."""
    stack = ExitStack()
    for layer, block in enumerate(find_decoder(model).blocks):
        if layers is not None and layer not in layers:
            continue
        pushed = bank.directions[layer][torch.arange(rows) % len(bank)] * (strength * bank.scale[layer])

        def hook(module, args, output, pushed=pushed):
            hidden = output[0] if isinstance(output, tuple) else output
            steered = hidden + pushed[:, None].to(hidden.dtype)
            steered *= hidden.norm(dim=-1, keepdim=True) / steered.norm(dim=-1, keepdim=True)
            return (steered, *output[1:]) if isinstance(output, tuple) else steered

        stack.callback(block.register_forward_hook(hook).remove)
    return stack


def repeng(
    model, bank: es.Bank, rows: int, strength: float, layers: Sequence[int] | None = None
) -> ExitStack:
    """repeng's ControlModel with normalize=True; a vector a row through its raw control."""
    np.float_ = np.float64  # noqa: NPY201 -- an annotation of repeng's names it; NumPy 2 has it no more
    from repeng import ControlModel

    layers = range(find_decoder(model).depth) if layers is None else layers
    stack = ExitStack()
    wrapped = ControlModel(model, list(layers))
    stack.callback(wrapped.unwrap)
    control = {
        layer: (bank.directions[layer][torch.arange(rows) % len(bank)] * (strength * bank.scale[layer]))[
            :, None
        ].to(model.dtype)
        for layer in layers
    }
    wrapped.set_raw_control(control, normalize=True)
    return stack


def steering_vectors(model, bank: es.Bank, rows: int, strength: float) -> ExitStack:
    """steering-vectors' patch_activations: one vector for all rows, added; it keeps no norm."""
    from steering_vectors import SteeringVector

    stack = ExitStack()
    vector = SteeringVector(
        {
            layer: (bank.directions[layer][0] * (strength * bank.scale[layer])).to(model.dtype)
            for layer in bank.layers
        }
    )
    stack.callback(vector.patch_activations(model).remove)
    return stack


PEERS = {"plain hook": plain_hook, "repeng": repeng, "steering-vectors": steering_vectors}
