"""Small statistics of the studies: rank correlation, intervals, strengths from pairwise choices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..circumplex import correlation


def ranks(x: Tensor) -> Tensor:
    """Ranks from 0, ties sharing their mean rank."""
    _, inverse, count = torch.unique(x, return_inverse=True, return_counts=True)
    end = count.cumsum(0).double()
    return (end - (count.double() + 1) / 2)[inverse]


def spearman(a: Sequence[float] | Tensor, b: Sequence[float] | Tensor) -> float:
    """Rank correlation; 0 where one side is constant."""
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return correlation(ranks(a), ranks(b))


def interval(values: Sequence[float] | Tensor, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95% interval of the mean by the bootstrap (Efron, 1979)."""
    x = torch.as_tensor(values, dtype=torch.float64)
    if len(x) < 2:
        return float(x.mean()), float(x.mean())
    generator = torch.Generator().manual_seed(seed)
    means = x[torch.randint(0, len(x), (draws, len(x)), generator=generator)].mean(1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


def wilson(successes: float, n: int) -> tuple[float, float]:
    """95% interval of a proportion (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    z, p = 1.959964, successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def elo(first: Tensor, ridge: float = 1e-3) -> tuple[Tensor, float]:
    """Elo ratings about 1000, and the advantage of standing first, from choices in both orders.

    The maximum of the Bradley–Terry likelihood with an order effect,
    P(i over j, i first) = 1 / (1 + 10^((R_j − R_i − H)/400)), less `ridge`/2 of the squared strengths,
    which keeps the ratings of all-round winners finite (Bradley & Terry, 1952; Davidson & Beaver, 1977;
    Elo, 1978). A chooser who mostly takes the second of two is no obstacle.

    Args:
        first: `[N, N]`, the probability (or share) with which i, standing first, was chosen over j.
        ridge: in units of one question between a pair.
    """
    n = len(first)
    i, j = (~torch.eye(n, dtype=torch.bool)).nonzero(as_tuple=True)
    y = first.double()[i, j]
    design = torch.zeros(len(y), n + 1, dtype=torch.float64)
    at = torch.arange(len(y))
    design[at, i], design[at, j], design[:, n] = 1.0, -1.0, 1.0
    penalty = ridge * torch.eye(n + 1, dtype=torch.float64)
    found = torch.zeros(n + 1, dtype=torch.float64)
    for _ in range(100):  # Newton's method, each step at most 1 so that it cannot overshoot
        p = torch.sigmoid(design @ found)
        slope = design.T @ (y - p) - penalty @ found
        curvature = design.T @ ((p * (1 - p))[:, None] * design) + penalty
        step = torch.linalg.solve(curvature, slope)
        step *= min(1.0, 1.0 / max(float(step.abs().max()), 1e-30))
        found += step
        if float(step.abs().max()) < 1e-10:
            break
    unit = 400 / torch.log(torch.tensor(10.0, dtype=torch.float64))
    strength = found[:n] - found[:n].mean()
    return 1000 + strength * unit, float(found[n] * unit)
