"""What a request asks to be read, as an engine finds it: columns of its buffers, units, bounds and places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from emosteer.bank import Bank
from emosteer.models.blocks import resolve_layers
from emosteer.models.capture import layer_at_two_thirds
from emosteer.models.positions import Positions, edges
from emosteer.zscores import ZScores

from .reads import READ, READ_BANK, READ_LAYERS, Reads


@dataclass(frozen=True, eq=False)
class PlacedReads:
    """What is read of a request, as the engine's kernels find it: item `i` is concept `i % C` at layer `i // C`.

    Attributes:
        asked: in words.
        layers: where.
        columns: of all directions of all banks, one a concept.
        offset, scale: float64 `[L·C]`; a reading is `(<x, v> − offset) · scale`.
        bounds: float64 `[L·C]`, ∞ where none is.
        numbers: `Positions.numbers` of the places.
        edges: `positions.edges` of a mask over them, or None.
    """

    asked: Reads
    layers: tuple[int, ...]
    columns: tuple[int, ...]
    offset: np.ndarray
    scale: np.ndarray
    bounds: np.ndarray
    numbers: tuple[int, int, int, int, int]
    edges: np.ndarray | None

    @classmethod
    def of(cls, reads: Reads, bank: Bank, first: int, readable: Sequence[int], depth: int) -> PlacedReads:
        """Where an engine finds them.

        Args:
            reads: what is asked for.
            bank: to read with.
            first: number of its first direction among those of all banks.
            readable: layers that can be read.
            depth: blocks of the model.

        Raises:
            ValueError: an unknown concept or layer, or a bank without what the unit needs.
        """
        layers = _layers(reads, bank, readable, depth)
        columns = [bank.index(concept) for concept in reads.concepts]
        try:
            units = [_unit(bank, layer, reads, columns) for layer in layers]
        except ValueError as error:
            raise ValueError(f"{READ}: {error}") from None
        bounds, positions = dict(reads.stop_at), Positions(reads.spec, 1)
        return cls(
            reads,
            layers,
            tuple(first + column for column in columns),
            torch.cat([offset for offset, _ in units]).numpy(),
            torch.cat([scale for _, scale in units]).numpy(),
            np.array([bounds.get(concept, np.inf) for concept in reads.concepts] * len(layers)),
            positions.numbers,
            None if positions.mask is None else edges(positions.mask[0]).numpy(),
        )

    def places(self, place: np.ndarray, prompt: int) -> np.ndarray:
        """Bool: which of these places in a text with a prompt of so many tokens are read."""
        start, from_end, stop, to_end, step = self.numbers
        first = max(start + from_end * prompt, 0)
        found = (place >= first) & (place < stop + to_end * prompt) & ((place - first) % step == 0)
        if self.edges is not None:
            found &= np.searchsorted(self.edges, place, side="right") % 2 == 1
        return found


def _layers(reads: Reads, bank: Bank, readable: Sequence[int], depth: int) -> tuple[int, ...]:
    there = tuple(layer for layer in readable if layer in bank.layers)
    if not there:
        raise ValueError(
            f"{READ_BANK}: this engine reads at layers {list(readable)}, the bank has none of them"
        )
    given = reads.layers
    if given is None:
        return (layer_at_two_thirds(there, depth),)
    try:
        wanted = resolve_layers(list(given) if isinstance(given, tuple) else given, depth)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{READ_LAYERS}: {error}") from None
    found = tuple(layer for layer in wanted if layer in there)
    if len(found) < len(wanted) and (not isinstance(given, str) or not found):
        missing = [layer for layer in wanted if layer not in there]
        raise ValueError(f"{READ_LAYERS}: this engine reads at layers {list(there)}, not at {missing}")
    return found


def _unit(bank: Bank, layer: int, reads: Reads, columns: list[int]) -> tuple[Tensor, Tensor]:
    """float64 `[C]` each, `offset` and `scale` of the concepts at a layer."""
    if reads.unit == "z":
        return ZScores(bank, layer, reads.concepts).affine
    directions = bank.directions[layer][columns].double()
    offset = directions.new_zeros(len(columns))
    if bank.mean:
        offset = directions @ bank.mean[layer].double()
    return offset, torch.full_like(offset, 1 / bank.scale.get(layer, 1.0))
