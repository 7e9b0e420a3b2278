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


def elo(wins: Tensor, prior: float = 0.1) -> Tensor:
    """float64 `[N]`: Elo ratings about 1000 from a matrix of choices.

    The maximum of the Bradley–Terry likelihood P(i over j) = 1 / (1 + 10^((R_j − R_i)/400)), with
    `prior` draws between all pairs, which keep the ratings of all-round winners finite
    (Bradley & Terry, 1952; Elo, 1978).

    Args:
        wins: `[N, N]`, how often (or with what probability) i was chosen over j.
        prior: draws added to each pair.
    """
    n = len(wins)
    games = wins.double() + prior * (1 - torch.eye(n, dtype=torch.float64))
    strength = torch.zeros(n, dtype=torch.float64)
    for _ in range(50):  # Newton's method
        p = torch.sigmoid(strength[:, None] - strength[None])
        total = games + games.T
        slope = (games - total * p).sum(1)
        weight = total * p * (1 - p)
        curvature = torch.diag(weight.sum(1)) - weight + 1.0 / n  # the mean is free: pin it
        step = torch.linalg.solve(curvature, slope)
        strength += step
        if float(step.abs().max()) < 1e-10:
            break
    strength -= strength.mean()
    return 1000 + strength * 400 / torch.log(torch.tensor(10.0, dtype=torch.float64))
