"""The residual stream inside vLLM's model: every block that can be steered, patched before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .deployment import Deployment
from .operator import steer_stream_, traced
from .read_operator import read_stream_

# Buffers of a steered block: graph inputs at fixed addresses.
DIRECTIONS, ROWS, PLACE, UNITS, TOKEN_ROW, READING, VALUES = (
    "emosteer_directions",
    "emosteer_rows",
    "emosteer_place",
    "emosteer_units",
    "emosteer_token_row",
    "emosteer_reading",
    "emosteer_values",
)


class UnknownStream(RuntimeError):
    """A model whose residual stream is not where it is looked for."""


def blocks_of(model: nn.Module, depth: int) -> nn.ModuleList:
    """The list of a model's blocks, of this pipeline rank's and placeholders for the others'.

    Raises:
        UnknownStream: not one list of that length.
    """
    if hasattr(model, "get_language_model"):
        model = getattr(model, "get_language_model")()  # noqa: B009
    lists = {
        name: child
        for name, child in model.named_modules()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    }
    if len(lists) != 1:
        found = ", ".join(lists) or "none"
        raise UnknownStream(
            f"vLLM's {type(model).__name__} has {len(lists)} lists of {depth} blocks ({found}), so emosteer does not "
            f"know where its residual stream is"
        )
    return next(iter(lists.values()))


def parts(output: Any, layer: int) -> tuple[Tensor, Tensor | None]:
    """`(hidden, residual)` of what a block returns; the residual is None where it returns the stream itself.

    Raises:
        UnknownStream: it returns something else, or anything but `[tokens, width]`.
    """
    hidden, residual = output, None
    if isinstance(output, tuple) and len(output) == 2:
        hidden, residual = output
    tensors = (hidden,) if residual is None else (hidden, residual)
    if not all(isinstance(one, Tensor) and one.ndim == 2 for one in tensors):
        shapes = [list(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in tensors]
        raise UnknownStream(
            f"block {layer} hands on {shapes}, expected one or two tensors of shape [tokens, width]"
        )
    return hidden, residual


def patch(
    blocks: nn.ModuleList,
    deployment: Deployment,
    rows: Tensor,
    token_row: Tensor,
    reading: Tensor | None = None,
    values: Mapping[int, Tensor] | None = None,
) -> dict[int, nn.Module]:
    """Have the blocks of the deployment's layers steer what they hand on, and write down what is read of it.

    Args:
        blocks: of the model.
        deployment: the banks, and at which layers.
        rows: int32 `[R, W]`, the table on the model's device.
        token_row: int32, the row of each token of a pass, room for padding included.
        reading: int32, which tokens are read (`TokenReads.flags`); None: none ever is.
        values: layer → where their projections are written.

    Returns:
        layer → block, of those that live on this rank.
    """
    patched = {}
    values = values or {}
    for layer in sorted({*deployment.layers, *values}):
        block = blocks[layer]
        if not any(True for _ in block.parameters()):  # of another pipeline rank
            continue
        put = {DIRECTIONS: deployment.directions(layer).to(rows.device)}
        if layer in deployment.layers:
            place = torch.tensor([deployment.unit_word, *deployment.place(layer)], dtype=torch.int32)
            put |= {ROWS: rows, PLACE: place.to(rows.device), UNITS: deployment.units(layer).to(rows.device)}
            put[TOKEN_ROW] = token_row
        if layer in values:
            assert reading is not None
            put |= {READING: reading, VALUES: values[layer]}
        for name, value in put.items():
            block.register_buffer(name, value, persistent=False)
        settings = deployment.settings
        block.forward = _acting(
            block, layer, settings.slots, settings.traced, layer in deployment.layers, layer in values
        )
        patched[layer] = block
    return patched


def _acting(
    block: nn.Module, layer: int, slots: int, trace: bool, steers: bool, reads: bool
) -> Callable[..., Any]:
    unsteered, own = (
        block.forward,
        cast(Any, block),
    )  # whose buffers are read by name, so that they can be traced

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = unsteered(*args, **kwargs)
        hidden, residual = parts(output, layer)
        if steers:
            arguments = (
                own.emosteer_directions,
                own.emosteer_rows,
                own.emosteer_place,
                own.emosteer_units,
                own.emosteer_token_row,
                slots,
            )
            if trace:
                hidden = traced(hidden, residual, *arguments)
                output = (hidden, residual) if isinstance(output, tuple) else hidden
            else:
                steer_stream_(hidden, residual, *arguments)
        if reads:
            read_stream_(hidden, residual, own.emosteer_directions, own.emosteer_reading, own.emosteer_values)
        return output

    return forward
