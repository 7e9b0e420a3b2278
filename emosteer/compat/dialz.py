"""dialz: SteeringModel steers on the kernels, SteeringVector.train reads in one pass without a head."""

from __future__ import annotations

from typing import Any

import dialz.vector

from .contrast import accelerate_hiddens
from .control_modules import accelerate_control_module
from .replacing import Replacements


def install(replaced: Replacements) -> None:
    """Replace what SteeringModel and SteeringVector.train spend their time in."""
    vector = dialz.vector
    norms = accelerate_control_module(
        replaced,
        vector.SteeringModel,
        vector.SteeringModule,
        vector.BlockControlParams,
        vector.model_layer_list,
    )
    accelerate_hiddens(replaced, vector, _bare, norms)


def _bare(model: Any) -> Any | None:
    """The model inside a SteeringModel; None where a control is set, which the reading would have to see."""
    layers = dialz.vector.model_layer_list(model)
    steered = (layer for layer in layers if isinstance(layer, dialz.vector.SteeringModule))
    if any(layer.params.control is not None for layer in steered):
        return None
    return model.model if isinstance(model, dialz.vector.SteeringModel) else model
