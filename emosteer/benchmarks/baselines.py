"""What one writes today in plain torch: the other side of each comparison, for eager mode and torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from emosteer.ops import SteerTable


def steer_(x: Tensor, directions: Tensor, table: SteerTable, row: Tensor) -> Tensor:
    """Add a row's direction and keep the norm, in place."""
    wide = x.float()
    y = wide + table.strength[row] * directions[table.direction[row, 0].long()]
    y *= wide.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
    return x.copy_(y)


def plain_hook(x: Tensor, directions: Tensor, row: Tensor) -> Tensor:
    """What a forward hook returns: a direction for each row added, the norm not kept."""
    return x + 0.5 * directions[row % len(directions)].to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """As Hugging Face models write it."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def steer_rms_norm_(x: Tensor, weight: Tensor, directions: Tensor, table: SteerTable, row: Tensor) -> Tensor:
    """One after the other."""
    return rms_norm(steer_(x, directions, table, row), weight)


def project(x: Tensor, directions: Tensor) -> Tensor:
    """A product in float32."""
    return x.float() @ directions.T


def project_extremes(x: Tensor, directions: Tensor, row: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Every score, then the maximum and the sum of each row's."""
    scores = project(x, directions)
    maximum = torch.full((rows, scores.shape[1]), -torch.inf, device=x.device)
    maximum.scatter_reduce_(0, row[:, None].expand_as(scores), scores, "amax")
    return maximum, torch.zeros_like(maximum).index_add_(0, row, scores)


def covariance(x: Tensor) -> Tensor:
    """torch.cov in float32."""
    return torch.cov(x.float().T)
