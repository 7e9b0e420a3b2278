"""What a pass has counted, and every direction that can be had from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emosteer import directions
from emosteer.bank import Bank

from .state import LayerMoments

METHODS = ("mean_difference", "lda")
NEUTRAL = "neutral"


@dataclass(frozen=True)
class Collected:
    """Moments of labelled and neutral texts at each layer; made by `collect`.

    Attributes:
        names: the labels, in the order in which they came.
        moments: layer → `LayerMoments`.
        provenance: model, texts, recipe and versions, as a bank keeps them.
    """

    names: tuple[str, ...]
    moments: Mapping[int, LayerMoments]
    provenance: Mapping[str, Any]

    @property
    def layers(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(self.moments)

    def bank(self, method: str = "mean_difference", denoise: float = 0.5, shrinkage: float = 0.1) -> Bank:
        """Directions of every label at every layer (`directions.mean_difference`, `directions.lda`).

        Args:
            method: "mean_difference" or "lda".
            denoise: fraction of the neutral texts' variance to take out, in [0, 1).
            shrinkage: of the covariance within labels, for "lda".

        Raises:
            ValueError: an unknown method, numbers out of range, fewer than two labels, or "lda" of
                moments without a covariance within labels.
        """
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if not 0 <= denoise < 1:
            raise ValueError(f"denoise must lie in [0, 1), got {denoise!r}")
        vectors: dict[int, Tensor] = {}
        mean, scale, center, spread, removed = {}, {}, {}, {}, {}
        for layer, moments in self.moments.items():
            neutral = self._neutral(layer)
            means = moments.stories.mean().cpu()
            if method == "lda":
                within = self._stories(layer, "within")
                found = directions.lda(means, within, neutral, denoise, shrinkage)
            else:
                found = directions.mean_difference(means, neutral, denoise)
            vectors[layer], mean[layer], removed[layer] = found.vectors, found.mean, found.components
            scale[layer] = float(moments.norm[0] / moments.norm[1])
            unit = found.vectors / torch.linalg.vector_norm(found.vectors, dim=1, keepdim=True)
            center[layer] = (moments.spread.total_mean().cpu() - found.mean) @ unit.T
            covariance = moments.spread.covariance("total", correction=0.0).cpu()
            spread[layer] = ((unit @ covariance) * unit).sum(1).clamp(min=0).sqrt()
        used = {"method": method, "denoise": denoise if self.provenance["texts"][NEUTRAL] else 0.0}
        if method == "lda":
            used["shrinkage"] = shrinkage
        return Bank(
            self.names,
            vectors,
            mean=mean,
            scale=scale,
            projection_mean=center,
            projection_std=spread,
            provenance={
                **self.provenance,
                **used,
                "components_removed": {str(layer): k for layer, k in removed.items()},
            },
        )

    def regrouped(self, label_of: Mapping[str, str]) -> Collected:
        """The same moments with labels put together: old label → new one; labels left out do not count
        towards any mean.

        Collected with one label a text, a pass gives the means of all texts, and any grouping of them
        afterwards: emotions, topics, halves, labels drawn at random.

        Raises:
            ValueError: no label is kept, or one is not there; labels left out although the covariance of
                the stories is kept, which holds all of them.
        """
        unknown = [name for name in label_of if name not in self.names]
        if unknown:
            raise ValueError(f"labels {unknown[:5]} were not counted")
        if not label_of:
            raise ValueError("label_of is empty: keep one label at least")
        some = next(iter(self.moments.values()))
        if some.stories.scatter is not None and len(label_of) < len(self.names):
            raise ValueError(
                f"{len(self.names) - len(label_of)} labels are left out, but the covariance holds their texts too; "
                f"collect with within=False"
            )
        names = tuple(dict.fromkeys(label_of.values()))
        at = {name: k for k, name in enumerate(names)}
        old = torch.tensor([k for k, name in enumerate(self.names) if name in label_of])
        new = torch.tensor([at[label_of[name]] for name in self.names if name in label_of])
        moments = {layer: one.regrouped(old, new, len(names)) for layer, one in self.moments.items()}
        return Collected(names, moments, self.provenance)

    def contrastive_pca(self, layer: int, alpha: float = 1.0, k: int = 1) -> Tensor:
        """float64 `[k, D]`: where the stories' tokens vary and the neutral ones do not.

        See `directions.contrastive_pca` (Abid et al., 2018).

        Raises:
            ValueError: an unknown layer, no neutral texts, or as there.
        """
        spread = self._at(layer).spread.covariance("total").cpu()
        neutral = self._neutral(layer)
        if neutral is None:
            raise ValueError("contrastive PCA needs neutral texts to contrast with; none were counted")
        return directions.contrastive_pca(spread, neutral, alpha, k)

    def eraser(self, layer: int) -> directions.Eraser:
        """What takes all linear information about the labels from a layer's tokens.

        See `directions.leace` (Belrose et al., 2023).

        Raises:
            ValueError: an unknown layer, or moments without a covariance within labels.
        """
        covariance = self._stories(layer, "total")
        stories = self._at(layer).stories
        return directions.leace(stories.count.cpu(), stories.mean().cpu(), covariance)

    def _at(self, layer: int) -> LayerMoments:
        if layer not in self.moments:
            raise ValueError(f"layer {layer} was not counted, only layers {list(self.layers)}")
        return self.moments[layer]

    def _stories(self, layer: int, kind: str) -> Tensor:
        stories = self._at(layer).stories
        if stories.scatter is None:
            raise ValueError("these moments have no covariance of the stories; collect them with within=True")
        return stories.covariance(kind, correction=0.0).cpu()

    def _neutral(self, layer: int) -> Tensor | None:
        neutral = self._at(layer).neutral
        return neutral.covariance("total").cpu() if float(neutral.count.sum()) > 1 else None
