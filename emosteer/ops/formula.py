"""The row update of `SteerTable` as a formula in plain torch, for a compiler to fuse with what stands around it.

Traced with a model, an operator is a wall: what is computed before and after it cannot be fused through
it. This is the same update written so that Inductor folds it into the add before a block's end and the
norm after it: float32, unrolled over the table's slots, no value read by Python. `reference` stays the
definition; this is compared with it like every backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import GRAM_TOLERANCE, bounded, root, rotation
from .table import SteerTable

# Slots a row up to which the unrolled formula is worth its length.
MAX_SLOTS = 8


def steer(
    x: Tensor,
    directions: Tensor,
    table: SteerTable,
    token_row: Tensor,
    *,
    keep: Tensor | None = None,
    scale: float | Tensor = 1.0,
    gram: Tensor | None = None,
    slot: Tensor | None = None,
    inverse: Tensor | None = None,
) -> Tensor:
    """`emosteer.ops.steer` for tracing: same formula, same arguments, nothing checked.

        y = a·x + Σ_j b_j v_j, then as the row's `preserve_norm` says

    Args:
        x: `[..., D]`, any float dtype; computed in float32 (float64 stays), rounded once.
        directions: float32 `[K, D]`, rows of unit length.
        table: at most `MAX_SLOTS` slots; its values are read while the traced code runs.
        token_row: integers, broadcast to `x.shape[:-1]`: the row of the table of each token, −1 for tokens
            that stay as they are. `[B, 1]` for `x` `[B, T, D]` says that the tokens of a text share a row.
        keep: bool, broadcast likewise: False for tokens that stay as they are whatever their row.
        scale: one unit of length.
        gram: float32 `[K, K]`, `directions @ directions.T`, for tables of several slots; computed if None.
        slot: `slots_of` the tokens, where it was looked up before for several layers at once.
        inverse: `inverse_gram` of the rows' slots, where it was computed before, likewise.

    Returns:
        like `x`. Differentiable in `x`, `directions` and the table's numbers. In float32 to about 1e-6 of a
        row's length; where its directions take up the whole row (a rotation that ends at one, and what is
        orthogonal to them keeps the norm) to the root of float32's rounding, 4e-4. Where they take a row away but for
        rounding, what is scaled to the norm that is kept is that rounding.
    """
    slots = table.direction.shape[1]
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    z = x.to(exact)
    row = token_row.clamp(min=0).long()
    slot = slots_of(table, token_row, keep) if slot is None else slot
    used = slot >= 0
    of = slot.clamp(min=0)
    strength, low, high, angle = (
        c[row].to(exact) for c in (table.strength, table.low, table.high, table.rotate)
    )
    form = table.preserve_norm[row]
    columns = range(slots)
    v = [directions[of[..., j]].to(exact) for j in columns]

    square = (z * z).sum(-1)
    norm = root(square)
    unit = scale * torch.where(table.relative[row] != 0, norm, 1.0)
    p = [(z * v[j]).sum(-1) for j in columns]
    a = torch.ones_like(norm)
    b = []
    for j in columns:
        floor, cap = bounded(low[..., j], unit), bounded(high[..., j], unit)
        added = strength[..., j] * unit + torch.minimum(torch.maximum(p[j], floor), cap) - p[j]
        stay, towards = rotation(p[j], norm, angle[..., j], 1.0)
        b.append(torch.where(used[..., j], added + towards, 0.0))
        a = a + torch.where(used[..., j], stay, 0.0)
    changed = a != 1
    for j in columns:
        changed = changed | (b[j] != 0)

    y = a[..., None] * z
    for j in columns:
        y = y + b[j][..., None] * v[j]
    after = root((y * y).sum(-1))
    whole = torch.where(after > 0, norm / torch.where(after > 0, after, 1.0), 1.0)

    if slots > 1 and inverse is None:
        inverse = inverse_gram(
            directions @ directions.T if gram is None else gram, slots_of(table, token_row)
        )
    share, inside = [], []
    for j in columns:
        one = p[j] if inverse is None else _total([inverse[..., j, k].to(exact) * p[k] for k in columns])
        share.append(torch.where(used[..., j], one, 0.0))
        inside.append(a * share[j] + b[j])
    outside, within = z, torch.zeros_like(z)
    for j in columns:
        outside = outside - share[j][..., None] * v[j]
        within = within + inside[j][..., None] * v[j]
    rest = root((outside * outside).sum(-1))
    # A single direction is of unit length: nothing to sum.
    length = inside[0].abs() if slots == 1 else root((within * within).sum(-1))
    room = root((norm - length) * (norm + length))
    g = torch.where(rest > norm * 1e-6, room / torch.where(rest > 0, rest, 1.0), 0.0)
    shrink = torch.where(length > norm, norm / torch.where(length > 0, length, 1.0), 1.0)

    if y.requires_grad:  # a strength of 0 changes nothing and still has a gradient
        changed = used.any(-1)
    y = torch.where(
        (form == 2)[..., None],
        shrink[..., None] * within + g[..., None] * outside,
        torch.where(form == 1, whole, 1.0)[..., None] * y,
    )
    return torch.where(changed[..., None], y.to(x.dtype), x)


def slots_of(table: SteerTable, token_row: Tensor, keep: Tensor | None = None) -> Tensor:
    """int64 `[..., S]`: the direction in each slot of the rows that tokens take.

    −1 for an empty slot; and for all slots of a token that stays as it is, by its row or by `keep`. (Without
    `keep` the result is as small as `token_row`.)
    """
    slot = table.direction[token_row.clamp(min=0).long()]
    here = token_row >= 0 if keep is None else keep & (token_row >= 0)
    return torch.where(here[..., None], slot, -1).long()


def inverse_gram(gram: Tensor, slot: Tensor) -> Tensor:
    """An inverse of the Gram matrix of each row's directions, `[..., *slot.shape, S]` float64.

    Zero for empty slots and for directions in the span of those before them, so that `inverse @ p` are
    the shares of the row's directions in a vector with dot products `p`. Unrolled, so that it can be
    traced and captured.

    Args:
        gram: `[..., K, K]`, the dot products of the directions, of one layer or of several.
        slot: as `slots_of` gives it.
    """
    slots = slot.shape[-1]
    at = slot.clamp(min=0)
    columns = range(slots)
    g = [[gram[..., at[..., i], at[..., j]].double() for j in columns] for i in columns]
    used = [(slot[..., i] >= 0).expand_as(g[0][0]) for i in columns]
    # G = L D Lᵀ over the directions that are independent; G⁻¹ = RᵀD⁻¹R with R = L⁻¹.
    zero = torch.zeros_like(g[0][0])
    lower = [[zero for _ in columns] for _ in columns]
    pivot: list[Tensor] = []
    inverted: list[Tensor] = []
    for j in columns:
        for i in range(j):
            known = [lower[j][k] * lower[i][k] * pivot[k] for k in range(i)]
            lower[j][i] = torch.where(used[j], (g[j][i] - _total(known or [zero])) * inverted[i], 0.0)
        left = g[j][j] - _total([lower[j][k] ** 2 * pivot[k] for k in range(j)] or [zero])
        own = used[j] & (left > GRAM_TOLERANCE)
        pivot.append(torch.where(own, left, 0.0))
        inverted.append(torch.where(own, 1.0 / torch.where(own, left, 1.0), 0.0))
    root = [[zero for _ in columns] for _ in columns]
    for j in columns:
        root[j][j] = torch.ones_like(zero)
        for i in range(j):
            root[j][i] = -_total([lower[j][k] * root[k][i] for k in range(i, j)])
    rows = [
        torch.stack([_total([root[k][i] * inverted[k] * root[k][j] for k in columns]) for j in columns], -1)
        for i in columns
    ]
    return torch.stack(rows, -2)


def _total(parts: list[Tensor]) -> Tensor:
    """Their sum, one after the other."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
