"""The definition of every operation, in plain torch: any float dtype, any device, differentiable.

Half-precision and float32 inputs are computed in float64 and rounded once; float64 stays float64.
Every other backend is tested against these functions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .moment_tensors import MomentTensors
from .table import SteerTable

# Directions that repeat each other make the Gram matrix of a row singular; below this it counts as such.
GRAM_TOLERANCE = 1e-6


def unavailable() -> None:
    """Plain torch runs everywhere."""
    return None


def project(x: Tensor, directions: Tensor, center: Tensor | None = None, cosine: bool = False) -> Tensor:
    """`<x − center, v_k>`, divided by `‖x − center‖` for cosines (0 where that norm is 0): `[..., K]` fp32."""
    rows = x.double() if center is None else x.double() - center.double()
    dots = rows @ directions.double().T
    if cosine:
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        dots = torch.where(norm == 0, torch.zeros_like(dots), dots / torch.where(norm == 0, 1.0, norm))
    return dots.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, weight_offset: float = 0.0) -> Tensor:
    """`x / sqrt(mean(x²) + eps) · (weight + weight_offset)`, rounded once to the dtype of `x`."""
    rows = x.double()
    inverse = torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + eps)
    return (rows * inverse * (weight.double() + weight_offset)).to(x.dtype)


def steer(
    x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """The row update of `SteerTable`, out of place."""
    y, changed = _steer(x.double(), directions, table, token_row, scale)
    return torch.where(changed, y.to(x.dtype), x)


def steer_rms_norm(
    x: Tensor,
    weight: Tensor,
    directions: Tensor,
    table: SteerTable,
    token_row: Tensor | None = None,
    scale: float = 1.0,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """`(rms_norm(stream), stream)` with `stream = steer(x + residual)`, rounded once.

    The norm reads the rounded stream.
    """
    total = x.double() if residual is None else x.double() + residual.double()
    y, changed = _steer(total, directions, table, token_row, scale)
    stream = torch.where(changed, y.to(x.dtype), x if residual is None else total.to(x.dtype))
    return rms_norm(stream, weight, eps, weight_offset), stream


def steer_(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> None:
    """`steer`, written back."""
    x.copy_(steer(x, directions, table, token_row, scale))


def steer_rms_norm_(
    x: Tensor,
    weight: Tensor,
    directions: Tensor,
    table: SteerTable,
    token_row: Tensor | None,
    scale: float,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
) -> Tensor:
    """`steer_rms_norm` with the stream written back to `x`."""
    normed, stream = steer_rms_norm(
        x, weight, directions, table, token_row, scale, residual, eps, weight_offset
    )
    x.copy_(stream)
    return normed


def token_rows(n: int, table_rows: int, token_row: Tensor | None, device: torch.device) -> Tensor:
    """int64 `[N]`: the table row of each token; a dense batch spreads N tokens evenly over the rows."""
    if token_row is not None:
        return token_row.reshape(-1).long()
    return torch.arange(n, device=device) // max(n // table_rows, 1)


def _steer(
    x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """`y` `[..., D]` and bool `[..., 1]`: where it is not `x` itself."""
    shape, dim = x.shape, x.shape[-1]
    x = x.reshape(-1, dim)
    v = directions.double()
    row = token_rows(len(x), table.rows, token_row, x.device)
    _require_inside("token_row", row, table.rows, "table rows")
    table.validate(len(v), exact=directions.dtype == torch.float64)
    r = row.clamp(min=0)
    slot = table.direction.long()[r]  # [N, S]
    used = (slot >= 0) & (row >= 0)[:, None]
    slot = slot.clamp(min=0)

    dots = x @ v.T  # [N, K]
    p = dots.gather(1, slot)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    u = scale * torch.where(table.relative[r].bool()[:, None], norm, torch.ones_like(norm))
    low, high = (bounded(b.double()[r], u) for b in (table.low, table.high))
    b = table.strength.double()[r] * u + (torch.minimum(torch.maximum(p, low), high) - p)
    stay, towards = rotation(p, norm, table.rotate.double()[r], torch.linalg.vector_norm(v, dim=1)[slot])
    b = torch.where(used, b + towards, torch.zeros_like(b))  # y = a·x + Σ b_j v_j
    a = 1 + torch.where(used, stay, torch.zeros_like(stay)).sum(1, keepdim=True)
    changed = (b != 0).any(1, keepdim=True) | (a != 1)

    y = a * x + _combine(b, slot, v)
    whole = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    kept = y * torch.where(whole > 0, norm / torch.where(whole > 0, whole, 1.0), torch.ones_like(norm))
    preserve = table.preserve_norm[r][:, None]
    y = torch.where(preserve == 1, kept, y)
    if (table.preserve_norm == 2).any():
        y = torch.where(preserve == 2, _keep_orthogonal(x, v, slot, used, p, norm, a, b), y)
    if y.requires_grad:  # a strength of 0 changes nothing and still has a gradient
        changed = used.any(1, keepdim=True)
    return y.reshape(shape), changed.reshape(*shape[:-1], 1)


def _require_inside(name: str, index: Tensor, below: int, what: str) -> None:
    bad = (index < -1) | (index >= below)
    if bad.any():
        n = int(bad.nonzero()[0])
        raise ValueError(
            f"{name}[{n}] is {int(index[n])}, expected -1 or an index below {below}, the number of {what}"
        )


def bounded(bound: Tensor, u: Tensor) -> Tensor:
    """`bound·u` with an infinite bound staying infinite where `u` is 0."""
    endless = bound.isinf()
    return torch.where(endless, bound, torch.where(endless, 0.0, bound) * u)  # and no NaN in its gradient


def rotation(p: Tensor, norm: Tensor, angle: Tensor, length: Tensor | float) -> tuple[Tensor, Tensor]:
    """`R x − x = stay·x + towards·v`: `x` turned by `angle` towards `v`, stopping at `±v`.

    The length of `v`, 1 up to float32 rounding, tells only for rows that are nearly parallel to it.
    """
    p = p / length
    orthogonal = root(norm.square() - p.square())
    plane = (angle != 0) & (orthogonal > norm * 1e-6)
    safe = torch.where(plane, orthogonal, torch.ones_like(orthogonal))
    before = torch.atan2(safe, p)
    after = (before - angle).clamp(0, torch.pi)
    ratio = after.sin() * norm / safe  # of the orthogonal parts
    zero = torch.zeros_like(p)
    return torch.where(plane, ratio - 1, zero), torch.where(
        plane, (after.cos() * norm - ratio * p) / length, zero
    )


def root(square: Tensor) -> Tensor:
    """The square root, 0 below 0, with a gradient of 0 instead of infinity there."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1.0).sqrt(), 0.0)


def _combine(coefficient: Tensor, slot: Tensor, v: Tensor) -> Tensor:
    """`Σ_j coefficient_j v_slot(j)` for every token, `[N, D]`."""
    return (
        torch.zeros(len(slot), len(v), dtype=v.dtype, device=v.device).scatter_add(1, slot, coefficient) @ v
    )


def _keep_orthogonal(
    x: Tensor, v: Tensor, slot: Tensor, used: Tensor, p: Tensor, norm: Tensor, a: Tensor, b: Tensor
) -> Tensor:
    """`y = inside + g·outside`: `inside` in the span of the row's directions, `g` such that `‖y‖ = ‖x‖`."""
    pair = used[:, :, None] & used[:, None, :]
    gram = torch.where(pair, (v @ v.T)[slot[:, :, None], slot[:, None, :]], 0.0)
    solved = (
        torch.linalg.pinv(gram, rtol=GRAM_TOLERANCE, hermitian=True) @ torch.where(used, p, 0.0)[..., None]
    )
    share = torch.where(used, solved[..., 0], 0.0)  # x = Σ share_j v_j + outside
    inside = _combine(a * share + b, slot, v)
    outside = x - _combine(share, slot, v)
    length = torch.linalg.vector_norm(inside, dim=-1, keepdim=True)
    rest = torch.linalg.vector_norm(outside, dim=-1, keepdim=True)
    room = root(norm.square() - length.square())
    something = rest > norm * 1e-6
    g = torch.where(something, room / torch.where(something, rest, 1.0), 0.0)
    shrink = torch.where(length > norm, norm / torch.where(length > norm, length, 1.0), torch.ones_like(norm))
    return shrink * inside + g * outside


def moments_update_(
    moments: MomentTensors, x: Tensor, token_group: Tensor | None, weight: Tensor | None
) -> None:
    """Counts, per-group sums and the pooled second moment about `shift`, which the first tokens' mean sets."""
    rows = x.reshape(-1, x.shape[-1]).double()
    group = torch.zeros(len(rows), dtype=torch.long, device=x.device)
    if token_group is not None:
        group = token_group.reshape(-1).long()
    _require_inside("token_group", group, moments.n_groups, "groups")
    counted = group >= 0
    rows, group = rows[counted], group[counted]
    w = torch.ones(len(rows), dtype=torch.float64, device=x.device)
    if weight is not None:
        w = weight.reshape(-1).double()[counted]
    total = w.sum()
    if total <= 0:
        return
    if not moments.started:
        moments.shift.copy_((w[:, None] * rows).sum(0) / total)
        moments.started.fill_(True)
    rows = rows - moments.shift
    weighted = w[:, None] * rows
    moments.count.index_add_(0, group, w)
    moments.sum.index_add_(0, group, weighted)
    if moments.scatter is not None:
        moments.scatter.add_((rows.T @ weighted).tril())
