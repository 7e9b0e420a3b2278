"""TransformerLens: a bridge's RMS norms on the kernel, once, around the hooks that its users write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

from emosteer.models.norms import RmsNorm, recognise
from emosteer.ops import backends

from .replacing import Replacements

# What a bridge's own norm was recognised as, in which dtype.
_recognised: WeakKeyDictionary[nn.Module, tuple[torch.dtype, RmsNorm | None]] = WeakKeyDictionary()


def install(replaced: Replacements) -> None:
    """Replace the norm of a bridge, which is computed twice: for hooks inside it, and by the model's own code."""
    replaced.replace(
        NormalizationBridge, "_hf_autograd_forward_with_hooks", lambda original: _norm(original, replaced)
    )


def _norm(original: Callable, replaced: Replacements) -> Callable:
    def _hf_autograd_forward_with_hooks(self: Any, x: Tensor) -> Tensor:
        norm = None
        if (
            replaced.on
            and type(x) is Tensor
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and x.stride(-1) == 1
            and x.numel()
            and not _watched(self.hook_scale)
            and not _watched(self.hook_normalized)
        ):
            norm = _own_norm(self.original_component, x.dtype)
        if norm is None:
            return original(self, x)
        return backends.of(x.device).rms_norm(x, norm.module.weight, norm.eps, norm.weight_offset)

    return _hf_autograd_forward_with_hooks


def _watched(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _own_norm(module: nn.Module | None, dtype: torch.dtype) -> RmsNorm | None:
    """The model's norm behind a bridge, None where it is no RMS norm of that dtype or somebody looks at it."""
    if module is None or _watched(module) or "forward" in module.__dict__:
        return None
    known = _recognised.get(module)
    if known is None or known[0] is not dtype:
        verdict = recognise(module)
        kept = isinstance(verdict, RmsNorm) and verdict.module.weight.dtype is dtype
        known = _recognised[module] = (dtype, verdict if kept and isinstance(verdict, RmsNorm) else None)
    return known[1]
