"""Readings in standard units: projections less their mean over a corpus, over their spread."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .bank import Bank
from .ops import project

# A spread below this share of the largest is rounding: the concept never varied.
_NO_SPREAD = 1e-6


class ZScores:
    """The z-scores of some concepts at one layer.

        z_c(x) = (<x − mean, v_c> − m_c) / s_c

    with the bank's mean residual, and m_c and s_c the mean and standard deviation of the projection
    over the tokens of the corpus that the bank was made from.

    Args:
        bank: with statistics, as `es.extract` makes it.
        layer: one of the bank's layers.
        names: the concepts, in order; None: all.

    Attributes:
        names: the concepts.
        directions: float32 `[K, D]`.

    Raises:
        ValueError: a bank without statistics, an unknown layer or concept, a concept without spread.
    """

    def __init__(self, bank: Bank, layer: int, names: Iterable[str] | None = None) -> None:
        if layer not in bank.layers:
            raise ValueError(f"layer {layer} is not in the bank, which has layers {list(bank.layers)}")
        if not bank.projection_std:
            raise ValueError(
                "the bank has no statistics of its projections, so readings have no standard unit; "
                "make it with es.extract, or read projections with emosteer.ops.project"
            )
        self.layer = layer
        self.names = bank.names if names is None else tuple(names)
        index = [bank.index(name) for name in self.names]
        self.directions = bank.directions[layer][index].contiguous()
        center = bank.mean[layer].double() if bank.mean else torch.zeros(bank.dim, dtype=torch.float64)
        self._spread = bank.projection_std[layer][index].double()
        flat = (self._spread <= _NO_SPREAD * bank.projection_std[layer].max()).nonzero().flatten().tolist()
        if flat:
            raise ValueError(
                f"concept {self.names[flat[0]]!r} never varied over the bank's corpus at layer {layer}: no z"
            )
        # One subtraction instead of two: <x, v> less the offset, over the spread.
        self._offset = self.directions.double() @ center + bank.projection_mean[layer][index].double()
        self._kept: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """float32 `[..., K]`: the z-scores of residual rows `[..., D]`."""
        if x.device not in self._kept:
            columns = (self.directions, self._offset.float(), self._spread.float().reciprocal())
            v, offset, inverse = (column.to(x.device) for column in columns)
            self._kept[x.device] = v, offset, inverse
        v, offset, inverse = self._kept[x.device]
        return project(x, v).sub_(offset).mul_(inverse)

    @property
    def affine(self) -> tuple[Tensor, Tensor]:
        """float64 `[K]` each, `offset` and `scale`: a z-score is `(<x, v> − offset) · scale`."""
        return self._offset, self._spread.reciprocal()

    def projection(self, name: str, z: float) -> float:
        """The projection `<x, v>` that has this z."""
        k = self.names.index(name)
        return float(self._offset[k] + z * self._spread[k])
