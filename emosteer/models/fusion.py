"""Which norm reads a block's output first, so that steering can happen inside it: found and proved on a probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .blocks import Decoder, run_probe, same_tensor
from .norms import RmsNorm, recognise
from .patching import first_tensor
from .token_rows import more_than_text, parameter_names


@dataclass
class Fusion:
    """What of a model the fused kernels take over.

    Attributes:
        readers: block → the RMS norm that reads its output, for the blocks where that was proved.
        reasons: block → why it is steered at its output instead.
        between: block → the modules that its output passes into, up to the norm that reads it.
        others: the remaining RMS norms, computed by the kernel as they are.
        given: names of the arguments with tensors in them that the stack was given when this was proved.
    """

    readers: dict[int, RmsNorm] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    between: dict[int, tuple[nn.Module, ...]] = field(default_factory=dict)
    others: list[RmsNorm] = field(default_factory=list)
    given: frozenset[str] = frozenset()

    def without(self, layer: int, reason: str) -> None:
        """Steer this block at its output."""
        norm = self.readers.pop(layer, None)
        if norm is not None:
            self.others.append(norm)
        self.reasons[layer] = reason


def _path(block: nn.Module, module: nn.Module) -> Iterator[nn.Module]:
    """The modules from a block down to one inside it; that module alone where it is not inside."""
    names = {m: name for name, m in block.named_modules()}
    if module not in names:
        yield module
        return
    parts = names[module].split(".")
    for depth in range(len(parts) + 1):
        yield block.get_submodule(".".join(parts[:depth]))


_proved: WeakKeyDictionary[nn.Module, tuple[Any, Fusion]] = WeakKeyDictionary()


def find_fusion(model: nn.Module, decoder: Decoder, prove: Callable[[Fusion], None]) -> Fusion:
    """The fusion of a model, from the last time if its modules, weights' types and hooks are the same.

    Args:
        model: the module that is run.
        decoder: its blocks.
        prove: withdraws from a candidate fusion what does not agree with steering at block outputs; raises
            where steering does not move the model.
    """
    weight = next(decoder.stack.parameters(), None)
    kind = None if weight is None else (weight.dtype, weight.device)
    hooks = [
        id(hook)
        for m in decoder.stack.modules()
        for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    state = (tuple(map(id, decoder.blocks)), kind, tuple(hooks))
    known = _proved.get(model)
    if known is None or known[0] != state:
        with torch.compiler.set_stance("force_eager"):
            fusion = _candidate(model, decoder)
        prove(fusion)
        known = _proved[model] = (state, fusion)
    return known[1]


def _candidate(model: nn.Module, decoder: Decoder) -> Fusion:
    """The norms that are handed the very tensor that a block returned, before any other module is."""
    verdicts = {m: recognise(m) for m in decoder.stack.modules() if "norm" in type(m).__name__.lower()}
    norms = {m: v for m, v in verdicts.items() if isinstance(v, RmsNorm)}
    events: list[tuple[int | nn.Module, Tensor | None]] = []
    hooks = []
    layer_of = {block: layer for layer, block in enumerate(decoder.blocks)}
    given: set[str] = set()
    inside = {m for block in decoder.blocks for m in block.modules() if m is not block}

    def entering(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module not in layer_of:
            tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            events.append((module, tensor))

    def leaving(module: nn.Module, args: tuple, output: Any) -> None:
        events.append((layer_of[module], first_tensor(output)))

    names = parameter_names(decoder.stack.forward)

    def called(_stack: nn.Module, args: tuple, kwargs: dict) -> None:
        given.update(more_than_text({**dict(zip(names, args)), **kwargs}, frozenset()))

    try:
        hooks.append(decoder.stack.register_forward_pre_hook(called, with_kwargs=True))
        for module in decoder.stack.modules():
            if module is not decoder.stack and (module in inside or not list(module.children())):
                hooks.append(module.register_forward_pre_hook(entering, with_kwargs=True))
        for block in decoder.blocks:
            hooks.append(block.register_forward_hook(leaving))
        run_probe(model)
    finally:
        for hook in hooks:
            hook.remove()

    fusion = Fusion(given=frozenset(given))
    for at, (who, stream) in enumerate(events):
        if not isinstance(who, int):
            continue
        reader, tensor = next(((w, t) for w, t in events[at + 1 :] if not isinstance(w, int)), (None, None))
        if reader is None or tensor is None or stream is None or not same_tensor(stream, tensor):
            name = "nothing" if reader is None else type(reader).__name__
            fusion.reasons[who] = f"the first module after it ({name}) does not read its output itself"
        elif reader in norms:
            fusion.readers[who] = norms[reader]
            following = decoder.blocks[who + 1] if who + 1 < decoder.depth else None
            fusion.between[who] = tuple(_path(following, reader)) if following is not None else (reader,)
        else:
            fusion.reasons[who] = str(verdicts.get(reader, f"{type(reader).__name__} reads it first"))
    taken = {norm.module for norm in fusion.readers.values()}
    fusion.others = [norm for module, norm in norms.items() if module not in taken]
    return fusion
