"""Finding the blocks of a decoder by running it once: no list of model names."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .patching import evaluating, first_tensor, unwrap
from .streams import prove_stream

# Set in a thread while it runs a probe: what watches a model looks away.
_probing = threading.local()

# (batch, tokens) of the input that the structure is read from.
PROBE_SHAPE = (2, 5)


@dataclass(frozen=True)
class Decoder:
    """Where a model keeps its residual stream.

    Attributes:
        stack: the module that owns the blocks and runs them in order.
        blocks: the blocks; the output of block l is the residual stream after it.
        name: the path of the list of blocks inside the model.
        dim: the width D of the residual stream.
    """

    stack: nn.Module
    blocks: tuple[nn.Module, ...]
    name: str
    dim: int

    @property
    def depth(self) -> int:
        return len(self.blocks)


_known: WeakKeyDictionary[nn.Module, Decoder] = WeakKeyDictionary()


def find_decoder(model: Any) -> Decoder:
    """The residual stream of a model: the longest list of modules that hand one `[B, T, D]` tensor along.

    The model is run once on a few tokens; a list of modules qualifies if each is called once, in
    order, gets the tensor that the one before returned and returns one of the same shape.

    Raises:
        ValueError: the model has no such list (or is an encoder–decoder), or cannot be run on token ids alone.
    """
    module = unwrap(model)
    found = _known.get(module)
    if found is None or _moved(module, found):
        found = _known[module] = _search(module)
    return found


def _moved(model: nn.Module, found: Decoder) -> bool:
    try:
        return tuple(model.get_submodule(found.name).children()) != found.blocks
    except (AttributeError, TypeError):
        return True


def _search(model: nn.Module) -> Decoder:
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model {type(model).__name__} is an encoder–decoder; "
            f"emosteer steers decoders, whose blocks share one residual stream"
        )
    lists = {
        name: list(child)
        for name, child in model.named_modules()
        if isinstance(child, nn.ModuleList) and len(child)
    }
    calls: dict[nn.Module, list[tuple[Tensor | None, Tensor | None]]] = {}

    def record(block: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        entered = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim == 3), None)
        calls.setdefault(block, []).append((entered, first_tensor(output)))

    hooks = [
        block.register_forward_hook(record, with_kwargs=True)
        for block in {b: None for blocks in lists.values() for b in blocks}
    ]
    try:
        run_probe(model)
    finally:
        for hook in hooks:
            hook.remove()

    best = max(
        ((len(blocks), name) for name, blocks in lists.items() if _is_chain(blocks, calls)), default=None
    )
    if best is None:
        raise ValueError(
            f"no chain of blocks was found in {type(model).__name__}: no nn.ModuleList whose members hand one "
            f"[batch, tokens, width] tensor along (looked at {', '.join(lists) or 'none'})"
        )
    name = best[1]
    parent = name.rpartition(".")[0]
    dim = calls[lists[name][0]][0][1].shape[-1]  # type: ignore[union-attr]
    found = Decoder(model.get_submodule(parent), tuple(lists[name]), name, dim)
    prove_stream(model, found.blocks, name, run_probe)
    return found


def _is_chain(blocks: list[nn.Module], calls: dict) -> bool:
    previous: Tensor | None = None
    for block in blocks:
        seen = calls.get(block, [])
        if len(seen) != 1:
            return False
        entered, left = seen[0]
        if left is None or entered is None or left.shape != entered.shape:
            return False
        if entered.shape[0] != PROBE_SHAPE[0] or entered.shape[1] < PROBE_SHAPE[1]:  # more: learned tokens
            return False
        if previous is not None and not same_tensor(previous, entered):
            return False
        previous = left
    return True


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are views of the same elements."""
    return a is b or (
        a.shape == b.shape
        and a.stride() == b.stride()
        and a.device == b.device
        and a.dtype == b.dtype
        and a.data_ptr() == b.data_ptr()
    )


def run_probe(model: nn.Module, *, variant: int = 0, kept: int = 0) -> Any:
    """Run a model on a few tokens, without a cache, gradients or side effects.

    Args:
        model: what is run.
        variant: 0 or another number for other tokens.
        kept: how many tokens of each row are those of variant 0 nevertheless.
    """
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    config: Any = getattr(model, "config", None)
    count = PROBE_SHAPE[0] * PROBE_SHAPE[1]
    plain = torch.tensor(_plain_ids(config, (variant + 1) * count), device=device).view(-1, *PROBE_SHAPE)
    ids = torch.cat([plain[0, :, :kept], plain[variant, :, kept:]], dim=1)
    _probing.on = True
    try:
        with evaluating(model), _remembering(model), torch.no_grad():
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    except Exception as error:
        raise ValueError(
            f"model {type(model).__name__} could not be run on token ids to find its blocks: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        _probing.on = False


@contextmanager
def _remembering(model: nn.Module) -> Iterator[None]:
    """Put back what a pass leaves in the modules themselves: recurrent states, offsets of positions."""
    before = [(part, dict(part)) for m in model.modules() for part in (m.__dict__, m._buffers)]
    try:
        yield
    finally:
        for part, values in before:
            for key in part.keys() - values.keys():
                del part[key]
            for key, value in values.items():
                if part.get(key, model) is not value:
                    part[key] = value


def _plain_ids(config: Any, count: int) -> list[int]:
    """Token ids that stand for text, not for an image or an end, which a model would treat otherwise."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    vocabulary = getattr(text, "vocab_size", None) or 32
    special: set[int] = set()
    for part in (config, text):
        for name, value in vars(part).items() if part is not None else ():
            if "token" in name:
                values = value if isinstance(value, (list, tuple)) else [value]
                # Not the configuration of a tokenizer.
                special.update(v for v in values if isinstance(v, int))
    plain = [
        i for i in (k * 7919 % vocabulary for k in range(1, min(vocabulary, 1000) + 1)) if i not in special
    ]
    return (plain * count or list(range(count)))[:count]


def probing() -> bool:
    """Whether this thread is running a probe, not a user's text."""
    return getattr(_probing, "on", False)


def check_layers(layers: Iterable[int], depth: int) -> None:
    """That a model has the layers of a bank.

    Raises:
        ValueError: it has not; files that count `hidden_states` have one layer more than there are blocks.
    """
    beyond = [layer for layer in layers if layer >= depth]
    if beyond:
        raise ValueError(
            f"the bank has layers {beyond[:8]}, the model has blocks 0 to {depth - 1}; they belong to different "
            f"models, or the file counts hidden_states, the embeddings first: Bank.load(..., layer_offset=-1)"
        )


def resolve_layers(layers: Any, depth: int) -> tuple[int, ...]:
    """Which blocks a `layers` argument names, ascending.

    Args:
        layers: "all"; "middle", the blocks from 40% to 70% of the depth; an int (negative counts from
            the end); a float between 0 and 1, the block at that fraction of the depth; or several of
            them (a range, a list).
        depth: number of blocks.

    Raises:
        TypeError, ValueError: names what came and what the model has.
    """
    if isinstance(layers, str):
        if layers == "all":
            return tuple(range(depth))
        if layers == "middle":
            return tuple(range(int(0.4 * depth), max(int(0.7 * depth), int(0.4 * depth) + 1)))
        raise ValueError(f'layers must be "all", "middle", numbers or fractions, got {layers!r}')
    if isinstance(layers, bool):
        raise TypeError("layers must be numbers, got a bool")
    if isinstance(layers, int):
        if not -depth <= layers < depth:
            raise ValueError(f"layer {layers} is outside the model, which has blocks 0 to {depth - 1}")
        return (layers % depth,)
    if isinstance(layers, float):
        if not 0 <= layers <= 1:
            raise ValueError(f"a layer given as a fraction of the depth must lie in [0, 1], got {layers}")
        return (min(round(layers * depth), depth - 1),)
    if isinstance(layers, Iterable):
        found = sorted({one for item in layers for one in resolve_layers(item, depth)})
        if not found:
            raise ValueError("layers names no block")
        return tuple(found)
    raise TypeError(f'layers must be "all", "middle", numbers or fractions, got {type(layers).__name__}')
