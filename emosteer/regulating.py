"""Keeping emotions within bounds: caps and floors in z-scores, exact on every token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .bank import Bank
from .models.blocks import check_layers, find_decoder, resolve_layers
from .models.capture import layer_at_two_thirds
from .programs import Program, Slot
from .steering import Steering, steer
from .zscores import ZScores


def regulate(
    model: Any,
    bank: Bank,
    *,
    cap: Mapping[str, float] | None = None,
    floor: Mapping[str, float] | None = None,
    layers: Any = None,
    positions: Any = "all",
    strict: bool = False,
) -> Regulation:
    """Bound what a model feels: `with es.regulate(model, bank, cap={"desperate": 1.0}): …`.

    A token whose z-score (`ZScores`) passes a bound is moved along the concept's direction onto it,
    and what is orthogonal to the regulated directions is rescaled so that the norm stays; a token
    within its bounds is left bit for bit. With one concept a layer the reading after the block is
    bounded exactly, up to the rounding of the model's dtype.

    Several concepts act at once, from the same stream, and their directions overlap: moving one by δ
    moves another's projection by δ times the cosine between them (`overlap`), so a reading may end
    above its cap by at most Σ_j |δ_j cos_ij|. Who needs each bound exactly caps an orthogonal set:
    `es.steer(model, bank.orthogonalised(names), es.cap(…) + es.cap(…))`.

    Args:
        model: any decoder.
        bank: with statistics, as `es.extract` makes it.
        cap, floor: concept → largest and smallest z-score.
        layers: where; the bank's layer nearest to two thirds of the depth by default.
        positions: which tokens, as in `es.steer`.
        strict: raise where the bank was made from another model.

    Raises:
        TypeError, ValueError: before anything is patched; a floor above its cap among them.
    """
    return Regulation(model, bank, dict(cap or {}), dict(floor or {}), layers, positions, strict)


class Regulation:
    """What `regulate` returns: patched on entering `with`, restored on leaving it.

    Attributes:
        concepts: in the order in which they were given.
        layers: where.
        overlap: layer → float32 `[K, K]`, the cosines between the concepts' directions.
    """

    def __init__(
        self,
        model: Any,
        bank: Bank,
        caps: dict[str, float],
        floors: dict[str, float],
        layers: Any,
        positions: Any,
        strict: bool,
    ) -> None:
        if not isinstance(bank, Bank):
            raise TypeError(f"bank must be an emosteer Bank, got {type(bank).__name__}")
        self.concepts = tuple(dict.fromkeys([*caps, *floors]))
        if not self.concepts:
            raise ValueError('nothing to regulate: pass cap={"desperate": 1.0} or floor={…}')
        for kind, bounds in (("cap", caps), ("floor", floors)):
            for name, z in bounds.items():
                if isinstance(z, bool) or not isinstance(z, (int, float)) or z != z:
                    raise ValueError(f"{kind}[{name!r}] must be a z-score, got {z!r}")
        for name in self.concepts:
            if floors.get(name, -torch.inf) > caps.get(name, torch.inf):
                raise ValueError(f"floor[{name!r}] = {floors[name]} lies above cap[{name!r}] = {caps[name]}")
        depth = find_decoder(model).depth
        check_layers(bank.layers, depth)
        at = (layer_at_two_thirds(bank.layers, depth),) if layers is None else resolve_layers(layers, depth)
        self.layers = tuple(at)
        self.overlap: dict[int, Tensor] = {}
        self._steerings: list[Steering] = []
        for layer in self.layers:
            scores = ZScores(bank, layer, self.concepts)
            self.overlap[layer] = scores.directions @ scores.directions.T
            program = _program(scores, caps, floors)
            regulated = Bank(
                self.concepts,
                {layer: scores.directions},
                provenance={k: v for k, v in bank.provenance.items() if k == "model"},
            )
            self._steerings.append(
                steer(
                    model,
                    regulated,
                    program,
                    layers=[layer],
                    positions=positions,
                    scale=1.0,
                    fused=False,
                    strict=strict,
                )
            )

    def attach(self) -> Regulation:
        """Patch the model."""
        try:
            for steering in self._steerings:
                steering.attach()
        except BaseException:
            self.detach()
            raise
        return self

    def detach(self) -> None:
        """Restore the model exactly."""
        for steering in reversed(self._steerings):
            steering.detach()

    def __enter__(self) -> Regulation:
        return self.attach()

    def __exit__(self, *_error) -> None:
        self.detach()

    def report(self) -> str:
        """Where the steering happens, block by block."""
        return "\n".join(steering.report() for steering in self._steerings)


def _program(scores: ZScores, caps: Mapping[str, float], floors: Mapping[str, float]) -> Program:
    """Bounds in z as bounds of the projections, in the stream's own units."""
    slots = []
    for name in scores.names:
        low, high = (
            scores.projection(name, bounds[name]) if name in bounds else unbounded
            for bounds, unbounded in ((floors, -math.inf), (caps, math.inf))
        )
        slots.append(Slot(name, low=low, high=high))
    return Program(tuple(slots))
