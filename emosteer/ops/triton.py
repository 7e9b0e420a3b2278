"""The backend of Triton kernels (`kernels/triton`): GPUs of NVIDIA and AMD, or any CPU in the interpreter.

Values of indices are not checked, as that would wait for the device: what is out of range is taken as
empty, and `SteerTable.validate` reports it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from .moment_tensors import MomentTensors
from .precision import whole_float32
from .sites import Bound, BoundNorm, BoundSteer, NormSite, Site, SteerSite
from .strides import collapsed
from .table import SteerTable

# The kernel that takes one triangle does half the products of cuBLAS on the whole square, each as six bfloat16
# ones on tensor cores. By counted work it wins where those are so much faster than float32 without them:
# dense bfloat16 over float32 of the data sheets, by compute capability, for the cards where that is so.
_BFLOAT16_OVER_FLOAT32 = {(8, 0): 16.0, (9, 0): 14.8, (10, 0): 30.0, (10, 3): 30.0}
# Least advantage on paper: neither side has been measured, and of its rate a kernel without stages may reach a third
# and cuBLAS nearly all.
_LEAST_ADVANTAGE = 4.0
# And the least width at which there are tiles enough for every multiprocessor.
_TRIANGLE_WIDTH = 4096
# Side of the blocks of the second moment by cuBLAS, and what they compute of the triangle: whole squares on its edge.
_SQUARE, _BLOCKS_OF_TRIANGLE = 1024, 1.25
# Compiled launches that a site keeps, one for each number of rows.
_MOST_KEPT = 64
# Rows held about the shift in float32 at a time.
_CHUNK_ROWS = 8192


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can: on a GPU one empty launch decides."""
    if find_spec("triton") is None:
        return "the package triton is not installed; pip install triton (it comes with torch for GPUs)"
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "there is no GPU; TRITON_INTERPRET=1, set before emosteer is used, runs it slowly on a CPU"
    try:
        return import_module("emosteer.kernels.capability").lacking()
    except Exception as error:  # whatever a package of another version or half a package raises
        return f"the installed triton does not load ({type(error).__name__}: {error})"


def steer_(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> None:
    launches = _launches()
    if (rows := _rows(x)) is None:
        steered = x.contiguous()
        steer_(steered, directions, table, token_row, scale)
        x.copy_(steered)
        return
    with _device(x):
        launches.steer(x, rows, None, directions, _checked(table), token_row, scale).run()


def steer(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> Tensor:
    launches, out = _launches(), torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, rows = _readable(x)
    with _device(x):
        launches.steer(x, rows, out, directions, _checked(table), token_row, scale).run()
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, rows = _readable(x)
    with _device(x):
        _launches().rms_norm(x, rows, out, _weight(weight, x), eps, weight_offset).run()
    return out


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
    launches = _launches()
    if (rows := _rows(x)) is None:
        stream = x.contiguous()
        normed = steer_rms_norm_(
            stream, weight, directions, table, token_row, scale, residual, eps, weight_offset
        )
        x.copy_(stream)
        return normed
    normed, residual_rows = torch.empty(x.shape, dtype=x.dtype, device=x.device), rows
    if residual is not None:
        residual, residual_rows = _readable(residual)
    with _device(x):
        launches.steer_rms_norm(
            x,
            rows,
            residual,
            residual_rows,
            normed,
            _weight(weight, x),
            directions,
            _checked(table),
            token_row,
            scale,
            eps,
            weight_offset,
        ).run()
    return normed


def bind(site: Site, dtype: torch.dtype) -> Bound:
    """`steer_rms_norm_` of contiguous rows of a dtype: compiled kernels are kept by the number of rows."""
    weight, directions, table = site.weight, site.directions, site.table
    rest = site.scale, None, site.eps, site.weight_offset

    def launch(x: Tensor, normed: Tensor, token_row: Tensor | None = None) -> Any:
        scale, _, eps, offset = rest
        launches, rows = _launches(), _launches().Rows.dense(x)
        arguments = x, rows, None, rows, normed, _weight(weight, x), directions, _checked(table), token_row
        return launches.steer_rms_norm(*arguments, scale, eps, offset)

    if not _keeps(weight, dtype):
        return lambda x, row: steer_rms_norm_(x, weight, directions, table, row, *rest)
    spread, given = _kept(directions.device, launch), _kept(directions.device, launch)
    empty_like = torch.empty_like

    def bound(x: Tensor, token_row: Tensor | None) -> Tensor:
        normed = empty_like(x)
        of_x, of_normed = x.data_ptr(), normed.data_ptr()
        if token_row is None:
            spread((x, normed), x.numel(), (of_x | of_normed) & 15, of_x, of_normed)
        else:
            of_row = token_row.data_ptr()
            given((x, normed, token_row), x.numel(), (of_x | of_normed) & 15, of_x, of_normed, of_row)
        return normed

    return bound


def bind_steer(site: SteerSite, dtype: torch.dtype) -> BoundSteer:
    """`steer_` of contiguous rows of a dtype: compiled kernels are kept by the number of rows."""
    directions, table, scale = site.directions, site.table, site.scale

    def launch(x: Tensor, token_row: Tensor | None = None) -> Any:
        rows = _launches().Rows.dense(x)
        return _launches().steer(x, rows, None, directions, _checked(table), token_row, scale)

    if _launches().INTERPRETED:
        return lambda x, row: steer_(x, directions, table, row, scale)
    spread, given = _kept(directions.device, launch), _kept(directions.device, launch)

    def bound(x: Tensor, token_row: Tensor | None) -> None:
        of_x = x.data_ptr()
        if token_row is None:
            spread((x,), x.numel(), of_x & 15, of_x)
        else:
            given((x, token_row), x.numel(), of_x & 15, of_x, token_row.data_ptr())

    return bound


def bind_norm(site: NormSite, dtype: torch.dtype) -> BoundNorm:
    """`rms_norm` of contiguous rows of a dtype: compiled kernels are kept by the number of rows."""
    weight, eps, offset = site.weight, site.eps, site.weight_offset

    def launch(x: Tensor, normed: Tensor) -> Any:
        return _launches().rms_norm(x, _launches().Rows.dense(x), normed, _weight(weight, x), eps, offset)

    if not _keeps(weight, dtype):
        return lambda x: rms_norm(x, weight, eps, offset)
    run, empty_like = _kept(weight.device, launch), torch.empty_like

    def bound(x: Tensor) -> Tensor:
        normed = empty_like(x)
        of_x, of_normed = x.data_ptr(), normed.data_ptr()
        run((x, normed), x.numel(), (of_x | of_normed) & 15, of_x, of_normed)
        return normed

    return bound


def _keeps(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether launches can be kept: the interpreter has none, and a weight of another dtype is copied in each."""
    return weight.dtype in (dtype, torch.float32) and not _launches().INTERPRETED


def _kept(device: torch.device, launch: Callable[..., Any]) -> Callable[..., None]:
    """Launches kept by number of elements and alignment: `run(tensors, elements, alignment, *their addresses)`.

    Args:
        device: of the tensors.
        launch: makes it from the tensors when it is first wanted.
    """
    kept: dict[tuple[int, int], Any] = {}
    current_device, stream = torch._C._cuda_getDevice, torch._C._cuda_getCurrentRawStream
    index = device.index

    def run(tensors: tuple[Tensor, ...], elements: int, alignment: int, *addresses: int) -> None:
        known = kept.get((elements, alignment))
        if known is None:
            if len(kept) >= _MOST_KEPT:
                kept.clear()
            with _device(tensors[0]):
                made = import_module("emosteer.kernels.kept").Kept(launch(*tensors), *tensors)
            kept[elements, alignment] = made
        elif current_device() != index:
            with _device(tensors[0]):
                known.start(stream(index), *addresses)
        else:
            known.start(stream(index), *addresses)

    return run


def project(x: Tensor, directions: Tensor, center: Tensor | None, cosine: bool) -> Tensor:
    scores = torch.empty((*x.shape[:-1], directions.shape[0]), dtype=torch.float32, device=x.device)
    if not scores.numel():
        return scores
    launches, (x, rows) = _launches(), _readable(x)
    with _device(x):
        if splits := launches.splits(x, directions):
            parts = torch.empty(splits, *scores.view(-1, scores.shape[-1]).shape, device=x.device)
            launches.project_parts(x, rows, directions, center, parts).run()
            launches.combine_parts(x, rows, center, cosine, parts, scores).run()
        else:
            launches.project(x, rows, directions, center, cosine, scores).run()
    return scores


def project_extremes_(
    maximum: Tensor,
    total: Tensor,
    x: Tensor,
    directions: Tensor,
    token_row: Tensor | None,
    center: Tensor | None,
    cosine: bool,
) -> None:
    launches, (x, rows) = _launches(), _readable(x)
    with _device(x):
        if splits := launches.splits(x, directions):
            parts = torch.empty(splits, x.numel() // x.shape[-1], len(directions), device=x.device)
            launches.project_parts(x, rows, directions, center, parts).run()
            into = maximum, total, token_row
            launches.combine_parts(x, rows, center, cosine, parts, None, *into).run()
        else:
            into = maximum, total, token_row
            launches.project_extremes(x, rows, directions, center, cosine, *into).run()


def triangle_from(capability: tuple[int, int] | None) -> float:
    """The width from which the second moment is taken by the triangular kernel and not by cuBLAS in blocks.

    Args:
        capability: of an NVIDIA GPU; None for another device.
    """
    advantage = _BLOCKS_OF_TRIANGLE * _BFLOAT16_OVER_FLOAT32.get(capability or (0, 0), 0.0) / 6
    return _TRIANGLE_WIDTH if advantage >= _LEAST_ADVANTAGE else math.inf


def _triangle(x: Tensor) -> bool:
    """Whether the triangular kernel takes rows like `x`."""
    return x.shape[-1] >= triangle_from(_capability(x.device.index) if x.is_cuda else None)


@lru_cache
def _capability(device: int) -> tuple[int, int] | None:
    return None if torch.version.hip else torch.cuda.get_device_capability(device)


def moments_update_(
    moments: MomentTensors, x: Tensor, token_group: Tensor | None, weight: Tensor | None
) -> None:
    """Nothing here asks the device for a value: what the first update decides is decided by masks."""
    launches = _launches()
    x, rows = _readable(x)
    dim, n, triangle = x.shape[-1], x.numel() // x.shape[-1], _triangle(x)
    counted = weight if weight is not None else torch.ones(n, device=x.device)
    with _device(x):
        if token_group is not None:
            token_group = token_group.reshape(-1)
            inside = (token_group >= 0) & (token_group < moments.n_groups)
            counted = torch.where(inside, counted, 0.0)
        pilot = torch.zeros(1, dim, dtype=torch.float64, device=x.device)
        pilot_sum = launches.group_sums(x, rows, None, counted, pilot, started=moments.started)
        # Nothing is written before the launch is known to be one that a device takes.
        all_counted = counted.sum(dtype=torch.float64)
        if token_group is None:
            moments.count[0] += all_counted
        else:
            at = token_group.clamp(0, moments.n_groups - 1).long()
            moments.count.index_add_(0, at, counted.double())
        pilot_sum.run()
        first = (all_counted > 0) & ~moments.started
        moments.shift.copy_(torch.where(first, pilot[0] / all_counted, moments.shift))
        moments.started.logical_or_(all_counted > 0)

        if moments.scatter is not None and triangle:
            dense = moments.scatter.contiguous()  # itself on a GPU; on a CPU rows may stand apart
            launches.scatter(x, rows, counted, moments.shift, dense).run()
            if dense is not moments.scatter:
                moments.scatter.copy_(dense)
        if moments.scatter is None or triangle:
            launches.group_sums(x, rows, token_group, counted, moments.sum, shift=moments.shift).run()
            return
        flat = x.reshape(n, dim)
        for start in range(0, n, _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            piece, piece_rows = _readable(flat[part])
            centred = torch.empty(len(piece), dim, device=x.device)
            launches.group_sums(
                piece,
                piece_rows,
                None if token_group is None else token_group[part],
                counted[part],
                moments.sum,
                shift=moments.shift,
                centred=centred,
            ).run()
            _add_lower_blocks_(moments.scatter, centred)


def _add_lower_blocks_(scatter: Tensor, rows: Tensor) -> None:
    """`scatter += rowsᵀ rows` on the blocks on and below the diagonal."""
    dim = rows.shape[1]
    with whole_float32(rows.device.type):
        for start in range(0, dim, _SQUARE):
            stop = min(start + _SQUARE, dim)
            if start:
                scatter[start:stop, :start].addmm_(rows[:, start:stop].T, rows[:, :start])
            corner = rows[:, start:stop]
            scatter[start:stop, start:stop] += (corner.T @ corner).tril_()


@lru_cache(maxsize=1)
def _launches():
    """Imported at the first use: it brings in Triton."""
    from emosteer.kernels import launches

    return launches


def _device(x: Tensor):
    """Triton launches on the current device; a CPU tensor (interpreter) has none."""
    return torch.cuda.device_of(x)


def _rows(x: Tensor):
    """The rows of `x` by two strides; None where its leading dimensions do not collapse to two."""
    found = collapsed(x)
    return None if found is None else _launches().Rows(*found)


def _readable(x: Tensor):
    """`x` and its rows, copied where more than two strides would be needed."""
    rows = _rows(x)
    return (x, rows) if rows is not None else (x := x.contiguous(), _rows(x))


def _weight(weight: Tensor, x: Tensor) -> Tensor:
    """A norm's weight as the kernels take it: in the type of `x` or in float32."""
    return weight if weight.dtype in (x.dtype, torch.float32) else weight.float()


def _checked(table: SteerTable) -> SteerTable:
    """The table, its shapes, dtypes and strides checked at its first use."""
    if table._handle is None:
        for problem in table.astray():
            raise problem
        object.__setattr__(table, "_handle", False)
    return table
