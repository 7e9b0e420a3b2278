"""The geometry of emotion directions: principal components against human valence and arousal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from emosteer.bank import Bank
from emosteer.models.capture import layer_at_two_thirds

from .circumplex_plot import draw
from .plane import Plane
from .ratings import Ratings, russell, vader

LEAST_RATED = 4


class Circumplex(Plane):
    """Where emotions lie in the plane of valence and arousal, at one layer; see `Plane`."""

    def plot(self, path: Any = None) -> Any:
        """The plane of valence and arousal, each concept by name; a matplotlib figure, written to `path`."""
        return draw(self, path)

    def __repr__(self) -> str:
        return (
            f"Circumplex(layer {self.layer}, {len(self.names)} concepts, valence r={self.valence_r:.2f} "
            f"(PC{self.valence_component}), arousal r={self.arousal_r:.2f} (PC{self.arousal_component}))"
        )


def circumplex(
    bank: Bank,
    layer: int | None = None,
    *,
    ratings: Ratings | None = None,
    valence: Mapping[str, float] | None = None,
) -> Circumplex:
    """PCA of a bank's directions, and the correlation of its components with human ratings.

    Valence is sought on PC1 and PC2, arousal among PC2 and PC3 other than the valence axis (Russell,
    1980; Sofroniew et al., 2026). The vectors have their lengths (`bank.magnitude`), not unit length.

    Args:
        bank: at least four concepts.
        layer: of the bank; the one nearest to two thirds of its deepest layer by default.
        ratings: word → (valence, arousal); Russell's 28 by default.
        valence: word → valence, for more words; vaderSentiment's by default, unless `ratings` are given.

    Raises:
        ValueError: an unknown layer, or too few concepts with ratings.
    """
    if layer is None:
        layer = layer_at_two_thirds(bank.layers, bank.layers[-1] + 1)
    if layer not in bank.layers:
        raise ValueError(f"layer {layer} is not in the bank, which has layers {list(bank.layers)}")
    if valence is None:
        valence = vader(bank.names) if ratings is None else {word: v for word, (v, _) in ratings.items()}
    if ratings is None:
        ratings = russell()
    human_valence = torch.tensor([valence.get(n, torch.nan) for n in bank.names], dtype=torch.float64)
    human_arousal = torch.tensor(
        [ratings[n][1] if n in ratings else torch.nan for n in bank.names], dtype=torch.float64
    )
    for what, column in (("valence", human_valence), ("arousal", human_arousal)):
        rated = int(torch.isfinite(column).sum())
        if rated < LEAST_RATED:
            raise ValueError(
                f"only {rated} of the bank's {len(bank)} concepts have a rating of {what}, at least {LEAST_RATED} "
                f"are needed; pass ratings=… of your own, or extract more concepts"
            )
    scores, explained = components(bank, layer)
    pleasant = max((0, 1), key=lambda j: abs(correlation(scores[:, j], human_valence)))
    excited = max(
        (j for j in (1, 2) if j != pleasant), key=lambda j: abs(correlation(scores[:, j], human_arousal))
    )
    third = next(j for j in range(3) if j not in (pleasant, excited))
    axes = []
    for j, human in ((pleasant, human_valence), (excited, human_arousal)):
        axes.append(scores[:, j] * (1.0 if correlation(scores[:, j], human) >= 0 else -1.0))
    return Circumplex(
        layer,
        bank.names,
        torch.stack([*axes, scores[:, third]], 1),
        explained,
        correlation(axes[0], human_valence),
        correlation(axes[1], human_arousal),
        pleasant + 1,
        excited + 1,
        (int(torch.isfinite(human_valence).sum()), int(torch.isfinite(human_arousal).sum())),
        human_valence,
        human_arousal,
    )


def components(bank: Bank, layer: int, k: int = 3) -> tuple[Tensor, Tensor]:
    """`([K, k] scores, shares of variance)`: the principal components of a layer's vectors."""
    vectors = bank.directions[layer].double().cpu() * bank.magnitude[layer].double().cpu()[:, None]
    centred = vectors - vectors.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    if len(s) < k:
        raise ValueError(f"the circumplex needs more than {k} concepts, the bank has {len(bank)}")
    return (u * s)[:, :k], s.square() / s.square().sum()


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's r over the entries where both are finite; 0 where one of them is constant."""
    both = torch.isfinite(a) & torch.isfinite(b)
    a, b = a[both] - a[both].mean(), b[both] - b[both].mean()
    length = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return float(a @ b / length) if float(length) > 0 else 0.0
