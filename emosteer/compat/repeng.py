"""repeng: ControlModel steers on the kernels, ControlVector.train reads in one pass without a head."""

from __future__ import annotations

from typing import Any

import repeng.control
import repeng.extract

from .contrast import accelerate_hiddens
from .control_modules import accelerate_control_module
from .replacing import Replacements


def install(replaced: Replacements) -> None:
    """Replace what ControlModel and ControlVector.train spend their time in."""
    control = repeng.control
    norms = accelerate_control_module(
        replaced,
        control.ControlModel,
        control.ControlModule,
        control.BlockControlParams,
        control.model_layer_list,
    )
    accelerate_hiddens(replaced, repeng.extract, _bare, norms)


def _bare(model: Any) -> Any | None:
    """The model inside a ControlModel; None where a control is set, which the reading would have to see."""
    layers = repeng.control.model_layer_list(model)
    steered = (layer for layer in layers if isinstance(layer, repeng.control.ControlModule))
    if any(layer.params.control is not None for layer in steered):
        return None
    return model.model if isinstance(model, repeng.control.ControlModel) else model
