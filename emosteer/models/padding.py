"""The attention mask that a whole model was called with, for stacks that are given a prepared one or none."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from .blocks import Decoder
from .patching import Patches

MASK = "attention_mask"


class RemembersMask(Protocol):
    """What the patches of one forward pass share."""

    mask: Tensor | None


def remember_mask(
    patches: Patches, model: nn.Module, decoder: Decoder, now: Callable[[], RemembersMask]
) -> None:
    """Patch the modules around a stack of blocks to note the 2-D attention mask they are called with.

    A vision-language model hands its text part masks made ready for attention, a recurrent one may
    drop the mask; which tokens are padding is then known only further out.

    Args:
        patches: undoes it.
        model: the module that is run.
        decoder: its blocks.
        now: where the mask of the pass that is running is kept; None again once the pass is over.
    """
    for module in around(model, decoder):
        if MASK in inspect.signature(module.forward).parameters:
            patches.replace(module, "forward", lambda f: _remembering(f, patches, now))


def around(model: nn.Module, decoder: Decoder) -> Iterator[nn.Module]:
    """The modules that contain the stack, from the model inwards, without the stack itself."""
    path: list[str] = []
    for part in decoder.name.split("."):
        module = model.get_submodule(".".join(path))
        if module is decoder.stack:
            return
        yield module
        path.append(part)


def _remembering(original: Callable, patches: Patches, now: Callable[[], RemembersMask]) -> Callable:
    signature = inspect.signature(original)
    at = list(signature.parameters).index(MASK)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not patches.active:
            return original(*args, **kwargs)
        here = now()
        outer = here.mask
        mask = kwargs.get(MASK, args[at] if len(args) > at else None)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            here.mask = mask
        try:
            return original(*args, **kwargs)
        finally:
            here.mask = outer

    forward.__signature__ = signature  # type: ignore[attr-defined]  # generate asks which arguments it takes
    return forward
