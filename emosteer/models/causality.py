"""Whether what follows a token changes it: proved by running a model, not by its name or configuration."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .blocks import PROBE_SHAPE, Decoder, run_probe
from .patching import first_tensor

# Tokens of the probe that stay as they are.
_KEPT = PROBE_SHAPE[1] // 2
# Rounding: the same tokens in the same shape give the same bits, but for experts that share their rows.
_EPSILONS = 4.0

_known: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def find_padding(model: nn.Module, decoder: Decoder) -> bool:
    """Whether texts may be padded on the right without a mask: nothing after a token changes its rows.

    Two probes that differ in their last tokens alone must agree in the stream before them, at every
    block. Bidirectional models (encoders, decoders set to attend both ways) do not.
    """
    if model not in _known:
        one, other = _streams(model, decoder, 0), _streams(model, decoder, 1)
        _known[model] = all(_agree(a, b) for a, b in zip(one, other))
    return _known[model]


def _streams(model: nn.Module, decoder: Decoder, variant: int) -> list[Tensor]:
    found: list[Tensor] = []

    def record(_block: nn.Module, _args: tuple, output: object) -> None:
        hidden = first_tensor(output)
        assert hidden is not None  # find_decoder has seen it
        found.append(hidden[:, :_KEPT].float().cpu())

    hooks = [block.register_forward_hook(record) for block in decoder.blocks]
    try:
        run_probe(model, variant=variant, kept=_KEPT)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _agree(a: Tensor, b: Tensor) -> bool:
    room = _EPSILONS * torch.finfo(torch.float32).eps * a.norm(dim=-1)
    return bool(((a - b).norm(dim=-1) <= room).all())
