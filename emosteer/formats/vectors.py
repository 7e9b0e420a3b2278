"""What a file of steering vectors says, in one shape for all formats; `Bank(**vars(vectors))` makes a bank of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

# No model has more blocks; a number beyond it is a broken file, and a table by layer must stay small.
MAX_LAYER = 9_999
_BY_LAYER = ("magnitude", "mean", "scale", "projection_mean", "projection_std")


@dataclass
class Vectors:
    """K concepts at several layers; layer `l` is the residual stream after block `l` (0-based).

    Attributes:
        names: the K concepts.
        directions: layer -> float32 `[K, D]`: rows of any length where `magnitude` is None, else unit rows.
        magnitude: layer -> float32 `[K]`, the lengths.
        mean, scale, projection_mean, projection_std, provenance: as in `Bank`.
    """

    names: list[str]
    directions: dict[int, Tensor]
    magnitude: dict[int, Tensor] | None = None
    mean: dict[int, Tensor] | None = None
    scale: dict[int, Any] | None = None
    projection_mean: dict[int, Tensor] | None = None
    projection_std: dict[int, Tensor] | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def named(self, names: Iterable[str]) -> Vectors:
        """The same under other names."""
        given = list(names)
        if len(given) != len(self.names):
            raise ValueError(
                f"it holds {len(self.names)} vectors a layer, got {len(given)} names: {given[:5]}"
            )
        return replace(self, names=given)

    def without(self, layer: int) -> Vectors:
        """The same less one layer."""
        parts: dict[str, Any] = {
            name: None if values is None else {l: value for l, value in values.items() if l != layer}
            for name in ("directions", *_BY_LAYER)
            for values in [getattr(self, name)]
        }
        return replace(self, **parts)

    def moved(self, offset: int) -> Vectors:
        """The same with `offset` added to each layer; what comes below layer 0 is left out."""
        if isinstance(offset, bool) or not isinstance(offset, int):
            raise ValueError(f"layer_offset must be an integer, got {offset!r}")
        if not offset:
            return self
        parts: dict[str, Any] = {
            name: None if values is None else {l + offset: v for l, v in values.items() if l + offset >= 0}
            for name in ("directions", *_BY_LAYER)
            for values in [getattr(self, name)]
        }
        if not parts["directions"]:
            raise ValueError(f"layer_offset={offset} leaves no layer of {list(self.directions)[:8]}")
        return replace(self, **parts)

    def only(self, concept: str) -> Vectors:
        """One concept of several."""
        if concept not in self.names:
            raise ValueError(f"there is no concept {concept!r}; there are: {', '.join(self.names[:8])}")
        k = self.names.index(concept)
        parts: dict[str, Any] = {
            name: None if values is None else {layer: value[k : k + 1] for layer, value in values.items()}
            for name in ("magnitude", "projection_mean", "projection_std")
            for values in [getattr(self, name)]
        }
        directions = {layer: rows[k : k + 1] for layer, rows in self.directions.items()}
        return replace(self, names=[concept], directions=directions, **parts)


def rows_of(tensor: Tensor, what: str) -> Tensor:
    """float32 `[K, D]` of a vector `[D]` or several `[K, D]`, finite; a copy that shares nothing."""
    if tensor.is_sparse or tensor.is_complex() or tensor.dtype == torch.bool or tensor.is_meta:
        raise ValueError(f"{what} must be plain real numbers, got {tensor.dtype} ({tensor.layout})")
    if tensor.ndim not in (1, 2) or not tensor.numel():
        raise ValueError(f"{what} must have shape [D] or [K, D], got {list(tensor.shape)}")
    held = tensor.untyped_storage().nbytes() // tensor.element_size()
    if tensor.numel() > held:
        raise ValueError(f"{what} declares {list(tensor.shape)} numbers, but only {held} are stored")
    rows = tensor.detach().cpu().to(torch.float32, copy=True).reshape(-1, tensor.shape[-1]).contiguous()
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{what} has values that are not finite in float32")
    return rows


def by_layer(found: Iterable[tuple[int, Tensor]]) -> dict[int, Tensor]:
    """Layer -> rows, ascending; one shape for all.

    Raises:
        ValueError: no layer, a layer twice or out of range, or shapes that differ.
    """
    layers: dict[int, Tensor] = {}
    for layer, rows in found:
        if not 0 <= layer <= MAX_LAYER:
            raise ValueError(f"layers must lie in 0..{MAX_LAYER}, got {layer}")
        if layer in layers:
            raise ValueError(f"layer {layer} is there twice")
        layers[layer] = rows
    if not layers:
        raise ValueError("it holds no vector")
    first, shape = min((layer, list(rows.shape)) for layer, rows in layers.items())
    for layer, rows in layers.items():
        if list(rows.shape) != shape:
            raise ValueError(
                f"the vectors must have one shape at all layers, got {shape} at {first} "
                f"and {list(rows.shape)} at {layer}"
            )
    return dict(sorted(layers.items()))


_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def number(text: Any, what: str) -> int:
    """A layer's number, written plainly: no sign, no leading zero, so that no layer has two spellings."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if not isinstance(text, str) or not _NUMBER.fullmatch(text):
        raise ValueError(f"{what} must be the number of a layer, got {str(text)[:40]!r}")
    return int(text)
