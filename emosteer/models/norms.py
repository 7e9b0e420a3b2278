"""Recognising a root-mean-square norm by what it computes, whatever its class is called."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from emosteer import ops


@dataclass(frozen=True)
class RmsNorm:
    """An RMS norm of a model: `y = x / sqrt(mean(x²) + eps) · (weight + weight_offset)`."""

    module: nn.Module
    eps: float
    weight_offset: float


def recognise(module: nn.Module) -> RmsNorm | str:
    """The norm that a module computes, or why it is none that the kernels can stand in for.

    A module qualifies if it has one parameter, a 1-D `weight`, and on random rows (tiny ones too,
    which show `eps`) gives what `rms_norm` gives.
    """
    name = type(module).__name__
    parameters = dict(module.named_parameters(recurse=False))
    if set(parameters) != {"weight"} or parameters["weight"].ndim != 1 or any(module.children()):
        return f"{name} is not an RMS norm: it has {', '.join(sorted(parameters)) or 'no parameters'}"
    if getattr(getattr(module, "_hf_hook", None), "offload", hasattr(module, "_hf_hook")):
        return f"{name} is moved between devices by accelerate"
    weight = parameters["weight"]
    if type(weight) is not nn.Parameter and type(weight.data) is not torch.Tensor:
        return f"the weight of {name} is a {type(weight).__name__}"
    if weight.dtype not in ops.checks.DTYPES or weight.device.type == "meta":
        return f"the weight of {name} is {weight.dtype} on {weight.device}"
    eps = [v for k, v in vars(module).items() if isinstance(v, float) and "eps" in k]
    if len(eps) != 1:
        return f"{name} has no attribute that could be its eps"
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, len(weight), generator=generator)
    x = (x * torch.tensor([[1.0], [30.0], [1e-2], [1e-4]])).to(weight.device, weight.dtype)
    with torch.no_grad():
        try:
            expected = module.forward(x.clone())
        except Exception as error:
            return f"{name} could not be run on rows alone: {error}"
        if not isinstance(expected, torch.Tensor) or expected.shape != x.shape or expected.dtype != x.dtype:
            return f"{name} does not return rows like those it is given"
        room = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[x.dtype]
        for offset in (0.0, 1.0):
            with ops.backend("reference"):
                y = ops.rms_norm(x, weight, eps=eps[0], weight_offset=offset)
            if torch.allclose(y.double(), expected.double(), rtol=room, atol=room * 1e-2):
                return RmsNorm(module, eps[0], offset)
    return f"{name} computes something other than an RMS norm"
