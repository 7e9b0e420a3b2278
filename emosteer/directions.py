"""From moments to directions: mean differences, discriminants, components, erasers."""

from __future__ import annotations

from collections.abc import Sequence
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


def lda(
    means: Tensor,
    within: Tensor,
    neutral_covariance: Tensor | None = None,
    denoise: float = 0.5,
    shrinkage: float = 0.1,
) -> Directions:
    """Mean differences whitened by the shrunk covariance within groups: linear discriminants.

        d_c = S⁻¹ (mean_c − mean),   S = (1 − γ) Σ_within + γ tr(Σ_within)/D · I

    (Fisher, 1936; shrinkage as Ledoit & Wolf, 2004, with γ given). Neutral components are taken out of
    the mean differences first.

    Args:
        means: float64 `[C, D]`.
        within: float64 `[D, D]`, the covariance within groups.
        neutral_covariance, denoise: as in `mean_difference`.
        shrinkage: γ in [0, 1].

    Raises:
        ValueError: as `mean_difference`, or a shrinkage outside [0, 1].
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must lie in [0, 1], got {shrinkage}")
    found = mean_difference(means, neutral_covariance, denoise)
    dim = within.shape[0]
    identity = torch.eye(dim, dtype=within.dtype, device=within.device)
    shrunk = (1 - shrinkage) * within + shrinkage * within.trace() / dim * identity
    vectors = torch.linalg.lstsq(
        shrunk, found.vectors.T, driver="gelsd" if within.device.type == "cpu" else None
    )
    return Directions(vectors.solution.T.contiguous(), found.mean, found.components)


def pca_of_differences(mean: Tensor, covariance: Tensor, pairs: int, *, center: bool = True) -> Tensor:
    """`[D]`: the first principal component of the differences of paired texts, towards the first of each pair.

    From the moments of the differences d = x⁺ − x⁻ alone. With `center` the component of the
    covariance of d (repeng's `pca_diff`); without, that of the second moment E[d dᵀ], which is what
    centring every pair about its midpoint gives (repeng's `pca_center`). Method: Zou et al., 2023.

    Args:
        mean: float64 `[D]`, of the differences.
        covariance: float64 `[D, D]`, unbiased.
        pairs: how many there are.
        center: see above.
    """
    second = covariance * ((pairs - 1) / pairs)
    if not center:
        second = second + torch.outer(mean, mean)
    first = torch.linalg.eigh(second)[1][:, -1]
    return first if float(first @ mean) >= 0 else -first


def contrastive_pca(target: Tensor, background: Tensor, alpha: float = 1.0, k: int = 1) -> Tensor:
    """`[k, D]`: directions in which the target varies and the background does not.

    The leading eigenvectors of Σ_target − α Σ_background (Abid et al., 2018).

    Raises:
        ValueError: a negative alpha, or k outside 1 … D.
    """
    if alpha < 0:
        raise ValueError(f"alpha must not be negative, got {alpha}")
    if not 1 <= k <= target.shape[0]:
        raise ValueError(f"k must lie between 1 and {target.shape[0]}, got {k}")
    return torch.linalg.eigh(target - alpha * background)[1].flip(1)[:, :k].T.contiguous()


@dataclass(frozen=True)
class Eraser:
    """`x ↦ x − P (x − mean)`: no linear probe can tell the groups afterwards.

    Attributes:
        projection: float64 `[D, D]`, P, of rank at most C − 1.
        mean: float64 `[D]`.
    """

    projection: Tensor
    mean: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rows `[..., D]`, in their own dtype."""
        wide = x.double()
        return (wide - (wide - self.mean) @ self.projection.T).to(x.dtype)


def leace(count: Tensor, means: Tensor, covariance: Tensor) -> Eraser:
    """The least-squares concept eraser, from group means and the pooled covariance.

        P = W⁺ Π W,   W = (Σ^½)⁺,   Π the projection on the columns of W Σ_xz

    (Belrose et al., 2023). For one-hot groups the columns of Σ_xz are f_c (mean_c − mean), with f_c
    the group's share.

    Args:
        count: float64 `[C]`, rows of each group.
        means: float64 `[C, D]`.
        covariance: float64 `[D, D]`, of all rows (maximum-likelihood or unbiased: P is the same).
    """
    share = count / count.sum()
    mean = share @ means
    cross = (share[:, None] * (means - mean)).T  # [D, C]
    values, vectors = torch.linalg.eigh(covariance)
    positive = values > values.max() * covariance.shape[0] * torch.finfo(values.dtype).eps
    root = torch.where(positive, values, 1.0).sqrt()
    whiten = (vectors * torch.where(positive, 1 / root, 0.0)) @ vectors.T
    colour = (vectors * torch.where(positive, root, 0.0)) @ vectors.T
    u, s, _ = torch.linalg.svd(whiten @ cross, full_matrices=False)
    u = u[:, s > s.max() * max(cross.shape) * torch.finfo(s.dtype).eps]
    return Eraser(colour @ (u @ (u.T @ whiten)), mean)


def logistic_probe(rows: Tensor, labels: Sequence[int] | Tensor, c: float = 1.0) -> Tensor:
    """float64 `[C, D]`: the weights of a logistic regression for each label against the rest.

    Needs the rows themselves; scikit-learn fits it.

    Args:
        rows: `[N, D]`.
        labels: `[N]`, 0 … C − 1.
        c: inverse strength of the ridge penalty.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.multiclass import OneVsRestClassifier
    except ImportError:
        raise ImportError('the logistic probe needs scikit-learn: pip install "emosteer[science]"') from None
    of = torch.as_tensor(labels).cpu().numpy()
    fitted = OneVsRestClassifier(LogisticRegression(C=c, max_iter=1000)).fit(rows.double().cpu().numpy(), of)
    weights = [torch.from_numpy(one.coef_[0]) for one in fitted.estimators_]
    return torch.stack(weights) if len(weights) > 1 else torch.stack([-weights[0], weights[0]])
