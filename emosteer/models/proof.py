"""Proving on a probe that steering moves a model, and that steering inside a norm gives what the output gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from emosteer.ops import SteerTable

from .blocks import Decoder, run_probe
from .fusion import Fusion

# Patches the given blocks by a fusion, with a table of one row, for as long as its context is open.
Steered = Callable[[Iterable[int], Fusion, dict[int, Tensor], SteerTable], Any]


def push(dim: int, device: torch.device) -> tuple[Tensor, SteerTable]:
    """A random direction `[1, D]` and a table that pushes hard towards it, whatever the stream's length."""
    v = torch.randn(1, dim, generator=torch.Generator().manual_seed(0))
    v /= torch.linalg.vector_norm(v)
    table = SteerTable.empty(1, device=device)
    table.direction[0, 0] = 0
    table.strength[0, 0] = 0.5
    table.preserve_norm[0] = 1
    table.relative[0] = 1
    return v.to(device), table


def prove(model: nn.Module, decoder: Decoder, fusion: Fusion, device: torch.device, steered: Steered) -> None:
    """Withdraw from a candidate fusion what does not give what steering at block outputs gives.

    Args:
        model: the module that is run.
        decoder: its blocks.
        fusion: changed in place; one without readers is proved to move the model only.
        device: of the table.
        steered: patches the model.

    Raises:
        ValueError: steering every block changes nothing on the probe, or the probe is not finite.
    """
    v, table = push(decoder.dim, device)

    def outcome(layers: Iterable[int], by: Fusion | None) -> tuple[Tensor, ...]:
        with torch.compiler.set_stance("force_eager"), _last_stream(decoder) as streams:
            if by is None:
                return _finals(run_probe(model), streams)
            layers = list(layers)
            with steered(layers, by, dict.fromkeys(layers, v), table):
                return _finals(run_probe(model), streams)

    every = range(decoder.depth)
    unsteered, plain = outcome(every, None), outcome(every, Fusion())
    _require_moved(model, unsteered, plain)
    if not fusion.readers and not fusion.others:
        return
    if agree(outcome(every, fusion), plain, unsteered):
        return
    fusion.others = []
    for layer in list(fusion.readers):
        one = Fusion({layer: fusion.readers[layer]}, given=fusion.given)
        if not agree(outcome([layer], one), outcome([layer], Fusion()), unsteered):
            fusion.without(layer, "steering inside the norm that reads it gave another result on a probe")
    fusion.others = []


def agree(fused: tuple[Tensor, ...], plain: tuple[Tensor, ...], unsteered: tuple[Tensor, ...]) -> bool:
    """Whether two ways of steering gave the same, measured by what steering changed."""
    changes = [_distance(p, u) for p, u in zip(plain, unsteered)]
    offs = [_distance(f, p) for f, p in zip(fused, plain)]
    room = [{torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 2e-2}.get(p.dtype, 1e-1) for p in plain]
    return max(changes) > 0 and all(off <= r * change for off, r, change in zip(offs, room, changes))


def _require_moved(model: nn.Module, unsteered: tuple[Tensor, ...], plain: tuple[Tensor, ...]) -> None:
    name = type(model).__name__
    if not all(bool(t.isfinite().all()) for t in unsteered):
        raise ValueError(
            f"{name} gave values that are not finite for a few plain tokens; nothing can be proved of it"
        )
    if not any(_distance(p, u) > 0 for p, u in zip(plain, unsteered)):
        raise ValueError(
            f"steering every block of {name} changed nothing in its output for a few plain tokens: what runs is "
            f"not what was patched (is a part of it compiled, exported or replaced by other code?)"
        )


def _distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a.double() - b.double()))


@contextmanager
def _last_stream(decoder: Decoder) -> Iterator[list[Any]]:
    """What the stack returns, for models whose head is blind to it (an untrained one of zeros)."""
    seen: list[Any] = []
    hook = decoder.stack.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


def _finals(output: Any, streams: list[Any]) -> tuple[Tensor, ...]:
    found = [_hidden_or_logits(output)]
    found += [_hidden_or_logits(s) for s in streams[-1:]]
    return tuple(t for t in found if t is not None)


def _hidden_or_logits(output: Any) -> Tensor | None:
    """The last hidden state or logits of an output."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    return next((v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.ndim >= 2), None)
