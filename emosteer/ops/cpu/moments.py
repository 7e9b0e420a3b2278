"""Streaming moments: sums by a kernel, the second moment by products of the lower triangle alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..moment_tensors import MomentTensors, rows_apart
from ..precision import whole_float32
from .binding import CODE, _cpu, rows_of
from .projection import CHUNK_ROWS


def moments_update_(
    moments: MomentTensors, x: Tensor, token_group: Tensor | None, weight: Tensor | None
) -> None:
    dim, n = x.shape[-1], x.numel() // x.shape[-1]
    group = 0 if token_group is None else token_group.data_ptr()
    _cpu.check_groups(group, n, moments.n_groups)
    counted = weight if weight is not None else torch.ones(n)
    if token_group is not None:
        counted = torch.where(token_group.reshape(-1) >= 0, counted, 0.0)
    total = float(counted.sum(dtype=torch.float64))
    if total <= 0:
        return
    rows = x.reshape(-1, dim)

    def run(part: slice, shift: Tensor, into: Tensor, centred: Tensor | None) -> None:
        first = part.start * 4  # bytes of an index or a weight
        _cpu.moments(
            CODE[x.dtype],
            rows_of(rows[part]),
            len(rows[part]),
            dim,
            group + first if group else 0,
            moments.n_groups,
            0 if weight is None else weight.data_ptr() + first,
            shift.data_ptr(),
            into.data_ptr(),
            0 if centred is None else centred.data_ptr(),
            0 if centred is None else centred.stride(0),
        )

    if not moments.started:
        pilot = torch.zeros(moments.n_groups, dim, dtype=torch.float64)
        run(slice(0, n), torch.zeros(dim, dtype=torch.float64), pilot, None)
        moments.shift.copy_(pilot.sum(0) / total)
        moments.started.fill_(True)
    if token_group is None:
        moments.count[0] += total
    else:
        moments.count.index_add_(0, token_group.reshape(-1).clamp(min=0), counted.double())
    if moments.scatter is None:
        return run(slice(0, n), moments.shift, moments.sum, None)
    for start in range(0, n, CHUNK_ROWS):
        part = slice(start, min(start + CHUNK_ROWS, n))
        centred = _scratch(moments, part.stop - start)
        run(part, moments.shift, moments.sum, centred)
        with whole_float32("cpu"):
            add_lower_triangle_(moments.scatter, centred)


def _scratch(moments: MomentTensors, n: int) -> Tensor:
    """`[n, D]` float32 kept from call to call: fresh memory costs more to touch than to compute with."""
    if moments.centred is None or len(moments.centred) < n:
        moments.centred = rows_apart(n, moments.dim)
    return moments.centred[:n]


# A triangle of up to _LEAF columns is taken in panels of _PANEL rows: less is wasted above the diagonal.
_LEAF, _PANEL = 1024, 192


def add_lower_triangle_(scatter: Tensor, rows: Tensor, start: int = 0, stop: int | None = None) -> None:
    """`scatter += tril(rowsᵀ rows)`: the square below the diagonal, then the two triangles beside it."""
    stop = rows.shape[1] if stop is None else stop
    if stop - start > _LEAF:
        middle = start + (stop - start) // 2
        scatter[middle:stop, start:middle].addmm_(rows[:, middle:stop].T, rows[:, start:middle])
        add_lower_triangle_(scatter, rows, start, middle)
        add_lower_triangle_(scatter, rows, middle, stop)
        return
    for top in range(start, stop, _PANEL):
        end = min(top + _PANEL, stop)
        scatter[top:end, start:end].addmm_(rows[:, top:end].T, rows[:, start:end])
        scatter[top:end, top:end].tril_()
