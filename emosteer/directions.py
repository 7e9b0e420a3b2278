"""From moments to directions: difference of means, less what neutral text varies in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Directions:
    """What `mean_difference` finds at one layer.

    Attributes:
        vectors: float64 `[C, D]`, not normalised.
        mean: float64 `[D]`, the mean of the group means: every group counts alike.
        components: how many principal components of the neutral text were taken out.
    """

    vectors: Tensor
    mean: Tensor
    components: int


def mean_difference(
    means: Tensor, neutral_covariance: Tensor | None = None, denoise: float = 0.5
) -> Directions:
    """Group means about their mean, orthogonal to the main directions of neutral text.

        d_c = mean_c − (1/C) Σ_k mean_k        d_c ← d_c − U Uᵀ d_c

    where the columns of U are the leading eigenvectors of the neutral covariance that together
    explain the fraction `denoise` of its trace (Sofroniew et al., 2026).

    Args:
        means: float64 `[C, D]`, at least two groups.
        neutral_covariance: float64 `[D, D]`; None: nothing is taken out.
        denoise: fraction of the neutral variance to take out, in [0, 1).

    Raises:
        ValueError: fewer than two groups, or a group that counted nothing.
    """
    if means.shape[0] < 2:
        raise ValueError(
            f"a difference of means needs at least two labels, got {means.shape[0]}; "
            f"add texts of another label to compare with"
        )
    if not bool(torch.isfinite(means).all()):
        bad = (~torch.isfinite(means)).any(1).nonzero().flatten().tolist()
        raise ValueError(f"the means of groups {bad} are not finite: they counted no token")
    mean = means.mean(0)
    vectors = means - mean
    if neutral_covariance is None or denoise == 0:
        return Directions(vectors, mean, 0)
    leading = principal_components(neutral_covariance, denoise)
    return Directions(vectors - (vectors @ leading) @ leading.T, mean, leading.shape[1])


def principal_components(covariance: Tensor, fraction: float) -> Tensor:
    """`[D, k]`: the leading eigenvectors, as few as explain `fraction` of the variance.

    A covariance of zero has none.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    total = values.sum()
    if total == 0:
        return vectors[:, :0]
    reached = values.cumsum(0) >= fraction * total * (1 - 1e-12)
    return vectors[:, : int(reached.to(torch.int8).argmax()) + 1]
