"""The row update of `SteerTable` as a formula in plain torch, for a compiler to fuse with what stands around it.

Traced with a model, an operator is a wall: what is computed before and after it cannot be fused through
it. This is the same update written so that Inductor folds it into the add before a block's end and the
norm after it: float32, unrolled over the table's slots, no value read by Python. `reference` stays the
definition; this is compared with it like every backend.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import reference
from .reference import GRAM_TOLERANCE, bounded
from .table import SteerTable

# Slots a row up to which the unrolled formula is worth its length.
MAX_SLOTS = 8
# Squared, below which a part of a row is its rounding.
_ROUNDING = 1e-12


class TokenPrograms(NamedTuple):
    """What the programs of tokens say, one tensor a kind: looked up once, read by every layer.

    Attributes:
        numbers: float `[9, ..., S]`: strength, lower bound, upper bound, cosine and sine of the rotation and its sign;
            the direction in the slot; then of the row `relative` and `preserve_norm`. An empty slot has those that
            change nothing, and direction 0.
        steered: bool, False for tokens that stay as they are.
    """

    numbers: Tensor
    steered: Tensor


def steer(
    x: Tensor,
    directions: Tensor,
    table: SteerTable,
    token_row: Tensor,
    *,
    keep: Tensor | None = None,
    scale: float | Tensor = 1.0,
    gram: Tensor | None = None,
    programs: TokenPrograms | None = None,
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
        programs: `look_up` of table, rows and `keep`, where that was done before for several layers at once, in the
            dtype that `x` is computed in; with several slots `inverse` comes with it.
        inverse: `inverse_gram` of the rows' slots, where it was computed before, likewise.

    Returns:
        like `x`. Differentiable in `x`, `directions` and the table's numbers. In float32 to about 1e-6 of a
        row's length; where its directions take up the whole row (a rotation that ends at one, and what is
        orthogonal to them keeps the norm) to the root of float32's rounding, 4e-4. Where they take a row away but for
        rounding, what is scaled to the norm that is kept is that rounding.
    """
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    if programs is None:
        programs = look_up(table, token_row, keep, exact)
    slots = programs.numbers.shape[-1]
    columns = range(slots)
    if slots > 1 and inverse is None:
        gram = directions @ directions.T if gram is None else gram
        inverse = inverse_gram(gram, slots_of(table, token_row))
    *slotted, direction, relative, form = programs.numbers.unbind(0)
    relative, form = relative[..., 0], form[..., 0]
    z = x.to(exact)
    v = [directions[direction[..., j].long()].to(exact) for j in columns]

    square = (z * z).sum(-1)
    norm, rounding = root(square), square * _ROUNDING
    unit = scale * torch.where(relative != 0, norm, 1.0)
    p = [(z * v[j]).sum(-1) for j in columns]
    a = torch.ones_like(norm)
    b = []
    for j in columns:
        strength, low, high, cos, sin, turn = (numbers[..., j] for numbers in slotted)
        floor, cap = bounded(low, unit), bounded(high, unit)
        added = strength * unit + (torch.minimum(torch.maximum(p[j], floor), cap) - p[j])
        # In the plane of x and v: what x has beside v, turned until it is nothing; −inf where there is nothing to turn.
        left = square - p[j] * p[j]
        turned = root(left) * cos - p[j] * sin
        turned = torch.where((turn != 0) & (left > rounding), turned, -math.inf)
        turns = turned > -math.inf
        across = torch.where(turns, left, 1.0).sqrt()
        along = torch.where(turned < 0, turn * norm, p[j] * cos + across * sin)
        ratio = torch.where(turns, turned.clamp(min=0) / across, 1.0)
        b.append(added + (torch.where(turns, along, p[j]) - ratio * p[j]))
        a = a + (ratio - 1)
    changed = a != 1
    for j in columns:
        changed = changed | (b[j] != 0)

    # x = Σ share_j v_j + what is outside the span of its directions; of y there is `inside` in the span.
    spans = form == 2
    share = [
        p[j] if inverse is None else _total([inverse[j, k].to(exact) * p[k] for k in columns])
        for j in columns
    ]
    inside = [torch.where(spans, a * share[j] + b[j], 0.0) for j in columns]
    y = torch.where(spans, 1.0, a)[..., None] * z  # or what is outside
    for j in columns:
        y = y + torch.where(spans, -share[j], b[j])[..., None] * v[j]
    within = _total([inside[j][..., None] * v[j] for j in columns])
    # A single direction is of unit length: nothing to sum.
    length = inside[0].abs() if slots == 1 else root((within * within).sum(-1))
    shrink = torch.where(length > norm, norm / torch.where(length > 0, length, 1.0), 1.0)
    room = torch.where(spans, root((norm - length) * (norm + length)), norm)
    after = (y * y).sum(-1)
    there = after > torch.where(spans, rounding, 0.0)
    stretch = torch.where(there, room / torch.where(there, after, 1.0).sqrt(), torch.where(spans, 0.0, 1.0))

    if y.requires_grad:  # a strength of 0 changes nothing and still has a gradient
        changed = programs.steered
    y = torch.where(form == 0, 1.0, stretch)[..., None] * y + shrink[..., None] * within
    return torch.where((changed & programs.steered)[..., None], y.to(x.dtype), x)


def root(square: Tensor) -> Tensor:
    """The square root, 0 below 0; in code compiled without gradients as short as it can be."""
    if torch.compiler.is_compiling() and not torch.is_grad_enabled():
        return square.clamp(min=0).sqrt()
    return reference.root(square)


def look_up(
    table: SteerTable, token_row: Tensor, keep: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> TokenPrograms:
    """The programs of the rows that tokens take; arguments as of `steer`.

    `numbers` is as small as `token_row`, `steered` has the shape of both masks.
    """
    row = token_row.clamp(min=0).long()
    direction, strength, low, high, angle = (column[row] for column in table.columns()[:5])
    used = direction >= 0
    here = token_row >= 0 if keep is None else keep & (token_row >= 0)
    strength, low, high, angle = (
        torch.where(used, column.to(dtype), neutral)
        for column, neutral in ((strength, 0.0), (low, -math.inf), (high, math.inf), (angle, 0.0))
    )
    turn = (angle.cos(), angle.sin(), angle.sign())
    flags = [
        column[row].to(dtype)[..., None].expand_as(low) for column in (table.relative, table.preserve_norm)
    ]
    return TokenPrograms(
        numbers=torch.stack([strength, low, high, *turn, direction.clamp(min=0).to(dtype), *flags]),
        steered=used.any(-1) & here,
    )


def slots_of(table: SteerTable, token_row: Tensor) -> Tensor:
    """int64 `[..., S]`: the direction in each slot of the rows that tokens take, −1 for an empty one."""
    slot = table.direction[token_row.clamp(min=0).long()]
    return torch.where((token_row >= 0)[..., None], slot, -1).long()


def inverse_gram(gram: Tensor, slot: Tensor) -> Tensor:
    """An inverse of the Gram matrix of each row's directions, float64 `[..., S, S, *rows]` for `slot` `[*rows, S]`.

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
    # R is lower triangular with ones on its diagonal: only what stands below is written out.
    backward: list[list[Tensor]] = []
    for j in columns:
        backward.append(
            [
                -_total([lower[j][i], *(lower[j][k] * backward[k][i] for k in range(i + 1, j))])
                for i in range(j)
            ]
        )
    scaled = [[backward[k][i] * inverted[k] for i in range(k)] + [inverted[k]] for k in columns]

    def entry(i: int, j: int) -> Tensor:
        return _total([scaled[j][i], *(scaled[k][i] * backward[k][j] for k in range(j + 1, slots))])

    upper = {(i, j): entry(i, j) for i in columns for j in range(i, slots)}
    rows = [upper[min(i, j), max(i, j)] for i in columns for j in columns]
    return torch.stack(rows, gram.dim() - 2).unflatten(gram.dim() - 2, (slots, slots))


def _total(parts: list[Tensor]) -> Tensor:
    """Their sum, one after the other."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
