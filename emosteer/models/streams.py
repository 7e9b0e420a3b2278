"""Proof that a chain of blocks carries the stream that a model's output is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .patching import first_tensor

_ROUNDING = 1e-3
_DEPTHS = ("num_layers",)


def prove_stream(model: nn.Module, blocks: Sequence[nn.Module], name: str, run: Callable[..., Any]) -> None:
    """Check that the chain is the model's depth, and that the model's output comes from its last block alone.

    The last block's output is set to fixed numbers: two inputs must then give one and the same output,
    which other numbers change. A model of several residual streams (Gemma 3n, hyper-connections), whose
    only chains are parts that act on one of them, fails this: what steering would mean there is not
    defined by one tensor.

    Args:
        model: what is run.
        blocks: the chain.
        name: its path in the model, for messages.
        run: `run(model, variant=n)` runs the model on the n-th few tokens.

    Raises:
        ValueError: what does not hold.
    """
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    depth = getattr(text, "num_hidden_layers", None)
    # LongCat counts two sublayers a block: its depth has another name.
    named = {getattr(text, name, None) for name in _DEPTHS}
    if isinstance(depth, int) and len(blocks) < depth and len(blocks) not in named:
        raise ValueError(
            f"model {type(model).__name__} has {depth} blocks, but the longest chain that hands one tensor along is "
            f"{name}, {len(blocks)} modules: several residual streams run between its blocks, or several lists make "
            f"up its depth; which of them to steer is not defined"
        )
    first, again, other = (
        _fixed(model, blocks[-1], run, variant, seed) for variant, seed in ((0, 0), (1, 0), (0, 1))
    )
    if first is None or again is None or other is None:
        return  # a sharded tensor, or no tensor to look at
    if _far(first, again) or not _far(first, other):
        what = "does not come from" if _far(first, again) else "is not moved by"
        raise ValueError(
            f"the output of {type(model).__name__} {what} the last of the {len(blocks)} modules in {name} alone: "
            f"it has several residual streams, or others of its modules add to what these hand on"
        )


def _fixed(
    model: nn.Module, last: nn.Module, run: Callable[..., Any], variant: int, seed: int
) -> Tensor | None:
    """The model's output where the last block hands on fixed numbers."""
    done = []

    def replace(_block: nn.Module, _args: tuple, output: Any) -> None:
        hidden = first_tensor(output)
        if hidden is None or type(hidden) is not Tensor:
            return
        numbers = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(seed))
        hidden.copy_(numbers)  # in place: whatever kind of output it is in
        done.append(True)

    hook = last.register_forward_hook(replace)
    try:
        output = output_of(run(model, variant=variant))
    finally:
        hook.remove()
    return output.float().clone() if done and output is not None else None


def output_of(result: Any) -> Tensor | None:
    """What a model hands back: its logits, or the last hidden state of one without a head."""
    if isinstance(result, Mapping):
        return next(
            (value for value in result.values() if isinstance(value, Tensor) and value.ndim == 3), None
        )
    return first_tensor(result)


def _far(a: Tensor, b: Tensor) -> bool:
    return a.shape != b.shape or float((a - b).norm()) > _ROUNDING * float(a.norm())
