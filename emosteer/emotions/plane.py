"""The plane of valence and arousal, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Plane:
    """Where emotions lie in the plane of the first principal components, at one layer.

    Attributes:
        layer: which.
        names: the concepts.
        coordinates: float64 `[K, 3]`: along valence, along arousal, and along the third component. The
            two named axes are the principal components that correlate best with the ratings,
            turned so that pleasant and excited are positive.
        explained: float64 `[K or D]`, share of the variance of each principal component.
        valence_r: correlation of the valence axis with human valence, not negative.
        arousal_r: of the arousal axis with human arousal.
        valence_component, arousal_component: which principal components the axes are (1-based).
        rated: how many concepts had a valence rating, and an arousal rating.
        valence: the ratings used, NaN where there is none.
        arousal: likewise.
    """

    layer: int
    names: tuple[str, ...]
    coordinates: Tensor
    explained: Tensor
    valence_r: float
    arousal_r: float
    valence_component: int
    arousal_component: int
    rated: tuple[int, int]
    valence: Tensor
    arousal: Tensor
