"""The backend of compiled row kernels (`csrc/cpu`), for tensors on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends
from .moments import Moments, rows_apart
from .precision import whole_float32
from .table import SteerTable

REBUILD = (
    "the compiled module emosteer._cpu is missing or does not load ({reason}). Build it with\n"
    "    pip install -e .        (in a checkout)   or   pip install --force-reinstall --no-deps emosteer\n"
    "which needs a C++ compiler (Debian, Ubuntu: apt-get install g++). "
    'Meanwhile EMOSTEER_BACKEND=reference or `with emosteer.backend("reference"):` runs without it, slowly.'
)

_reason: str | None = None
try:  # after torch, so that both share one OpenMP runtime
    from emosteer import _cpu
except ImportError as error:
    _reason = REBUILD.format(reason=error)

_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Up to this many multiply-adds the row kernel beats a matrix product's fixed cost.
_SMALL_PROJECTION = 1 << 20
# Rows widened to float32 at a time before a matrix product.
_CHUNK_ROWS = 4096


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    return _reason


def steer_(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> None:
    handle = table._handle or _table_handle(table)
    k, dim = directions.shape
    if x.is_contiguous():
        _cpu.steer_rows(
            _CODE[x.dtype],
            x.data_ptr(),
            x.numel() // dim,
            dim,
            dim * x.element_size(),
            directions.data_ptr(),
            k,
            handle,
            0 if token_row is None else token_row.data_ptr(),
            scale,
        )
        return
    view = _rows(x)
    if view is None:
        steered = x.contiguous()
        steer_(steered, directions, table, token_row, scale)
        x.copy_(steered)
        return
    token = 0 if token_row is None else token_row.data_ptr()
    _cpu.steer(
        _CODE[x.dtype], view, view, x.numel() // dim, dim, directions.data_ptr(), k, handle, token, scale
    )


def remember_steer_(x: Tensor, directions: Tensor, table: SteerTable) -> None:
    """Note on the directions that this call of `steer_` passed every check."""
    if x.is_contiguous() and not directions.is_inference():
        k, dim = directions.shape
        shape = (_CODE[x.dtype], x.numel() // dim, dim, dim * x.element_size(), directions.data_ptr(), k)
        directions._emosteer_call = (directions._version, table, x.shape, x.dtype, shape)  # type: ignore[attr-defined]


def repeat_steer_(x: Tensor, directions: Tensor, table: SteerTable, scale: float) -> bool:
    """Steer dense rows as the last checked call with these directions did; False where this is another call.

    A decoding loop repeats itself: what was checked a step ago is recognised in a third of the time
    of checking it again.
    """
    call = getattr(directions, "_emosteer_call", None)
    if call is None or backends.asked_here() is not None:
        return False
    version, its_table, its_shape, dtype, (code, rows, dim, row_bytes, pointer, k) = call
    if (
        table is its_table
        and x.__class__ is Tensor
        and x.dtype is dtype
        and x.shape == its_shape
        and x.is_contiguous()
        and x.is_cpu
        and not x.requires_grad
        and directions._version == version
        and directions.data_ptr() == pointer
        and scale - scale == 0
    ):
        _cpu.steer_rows(code, x.data_ptr(), rows, dim, row_bytes, pointer, k, table._handle, 0, scale)
        return True
    return False


def steer(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    k, dim = directions.shape
    view = _rows(x)
    if view is None:
        out.copy_(x)
        steer_(out, directions, table, token_row, scale)
        return out
    _cpu.steer(
        _CODE[x.dtype],
        view,
        _rows(out),
        x.numel() // dim,
        dim,
        directions.data_ptr(),
        k,
        table._handle or _table_handle(table),
        0 if token_row is None else token_row.data_ptr(),
        scale,
    )
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype)
    dim = x.shape[-1]
    if x.is_contiguous():
        _cpu.rms_norm_rows(
            _CODE[x.dtype],
            x.data_ptr(),
            out.data_ptr(),
            x.numel() // dim,
            dim,
            dim * x.element_size(),
            weight.data_ptr(),
            _CODE[weight.dtype],
            eps,
            weight_offset,
        )
        return out
    view = _rows(x) or _rows(x := x.contiguous())
    _cpu.rms_norm(
        _CODE[x.dtype],
        view,
        _rows(out),
        x.numel() // dim,
        dim,
        weight.data_ptr(),
        _CODE[weight.dtype],
        eps,
        weight_offset,
    )
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
    normed = torch.empty(x.shape, dtype=x.dtype)
    k, dim = directions.shape
    if residual is None and x.is_contiguous():
        _cpu.steer_rms_norm_rows(
            _CODE[x.dtype],
            x.data_ptr(),
            normed.data_ptr(),
            x.numel() // dim,
            dim,
            dim * x.element_size(),
            weight.data_ptr(),
            _CODE[weight.dtype],
            eps,
            weight_offset,
            directions.data_ptr(),
            k,
            table._handle or _table_handle(table),
            0 if token_row is None else token_row.data_ptr(),
            scale,
        )
        return normed
    view = _rows(x)
    if view is None:
        stream = x.contiguous()
        normed = steer_rms_norm_(
            stream, weight, directions, table, token_row, scale, residual, eps, weight_offset
        )
        x.copy_(stream)
        return normed
    other = _NONE
    if residual is not None:
        other = _rows(residual) or _rows(residual := residual.contiguous())
    _cpu.steer_rms_norm(
        _CODE[x.dtype],
        view,
        other,
        _rows(normed),
        x.numel() // dim,
        dim,
        weight.data_ptr(),
        _CODE[weight.dtype],
        eps,
        weight_offset,
        directions.data_ptr(),
        k,
        table._handle or _table_handle(table),
        0 if token_row is None else token_row.data_ptr(),
        scale,
    )
    return normed


def project(x: Tensor, directions: Tensor, center: Tensor | None, cosine: bool) -> Tensor:
    k, dim = directions.shape
    n = x.numel() // dim
    dots = torch.empty(*x.shape[:-1], k)
    if n * k * dim <= _SMALL_PROJECTION:
        view = _rows(x) or _rows(x := x.contiguous())
        at = 0 if center is None else center.data_ptr()
        _cpu.project(
            _CODE[x.dtype], view, n, dim, directions.data_ptr(), k, at, cosine, dots.data_ptr(), 0, 0
        )
        return dots
    rows, flat = x.reshape(-1, dim), dots.view(-1, k)
    if center is None and not cosine and (n <= _CHUNK_ROWS or x.dtype == torch.float32):
        # `out` also keeps autocast away, which would round the dots
        with whole_float32("cpu"):
            torch.mm(rows.float(), directions.T, out=flat)
        return dots
    for start in range(0, n, _CHUNK_ROWS):
        chunk, norms = _widen(rows[start : start + _CHUNK_ROWS], center, cosine)
        part = flat[start : start + _CHUNK_ROWS]
        with whole_float32("cpu"):
            torch.mm(chunk, directions.T, out=part)
        if cosine:
            part *= torch.where(norms > 0, norms.reciprocal(), norms)[:, None]
    return dots


def remember_project(x: Tensor, directions: Tensor) -> None:
    """Note on the directions that a plain projection passed every check (as `remember_steer_`)."""
    k, dim = directions.shape
    n = x.numel() // dim
    if x.is_contiguous() and 0 < n <= _CHUNK_ROWS and not directions.is_inference():
        known = (_CODE[x.dtype], n, dim, dim * x.element_size(), directions.data_ptr(), k)
        call = (directions._version, x.shape, x.dtype, (*x.shape[:-1], k), known)
        directions._emosteer_project = call  # type: ignore[attr-defined]


def repeat_project(x: Tensor, directions: Tensor) -> Tensor | None:
    """Project rows as the last checked call with these directions did; None where this is another call."""
    call = getattr(directions, "_emosteer_project", None)
    if call is None or backends.asked_here() is not None:
        return None
    version, its_shape, dtype, out_shape, (code, rows, dim, row_bytes, pointer, k) = call
    if (
        x.__class__ is Tensor
        and x.dtype is dtype
        and x.shape == its_shape
        and x.is_contiguous()
        and x.is_cpu
        and not (x.requires_grad or directions.requires_grad)
        and directions._version == version
        and directions.data_ptr() == pointer
    ):
        dots = torch.empty(out_shape)
        if rows * k * dim > _SMALL_PROJECTION:
            wide = x if code == 0 else x.float()
            with whole_float32("cpu"):
                if x.ndim == 2:
                    return torch.mm(wide, directions.T, out=dots)
                torch.mm(wide.view(rows, dim), directions.T, out=dots.view(rows, k))
            return dots
        _cpu.project_rows(code, x.data_ptr(), rows, dim, row_bytes, pointer, k, dots.data_ptr())
        return dots
    return None


def _widen(rows: Tensor, center: Tensor | None, norms: bool) -> tuple[Tensor, Tensor]:
    """`rows − center` in float32 and, if wanted, their norms, from one read."""
    n, dim = rows.shape
    wide, length = torch.empty(n, dim), torch.empty(n if norms else 0)
    at = 0 if center is None else center.data_ptr()
    _cpu.project(
        _CODE[rows.dtype],
        _rows(rows),
        n,
        dim,
        0,
        0,
        at,
        False,
        0,
        wide.data_ptr(),
        length.data_ptr() if norms else 0,
    )
    return wide, length


def moments_update_(moments: Moments, x: Tensor, token_group: Tensor | None, weight: Tensor | None) -> None:
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
            _CODE[x.dtype],
            _rows(rows[part]),
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
    for start in range(0, n, _CHUNK_ROWS):
        part = slice(start, min(start + _CHUNK_ROWS, n))
        centred = _scratch(moments, part.stop - start)
        run(part, moments.shift, moments.sum, centred)
        with whole_float32("cpu"):
            add_lower_triangle_(moments.scatter, centred)


def _scratch(moments: Moments, n: int) -> Tensor:
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


def _table_handle(table: SteerTable) -> _cpu.Table:
    for problem in table.astray():
        raise problem
    handle = _cpu.Table(
        table.rows, table.slots, *(column.data_ptr() for column in table.columns()), *table.strides
    )
    object.__setattr__(table, "_handle", handle)
    return handle


def _rows(x: Tensor) -> _cpu.Rows | None:
    """The rows of `x` by two strides; None where its leading dimensions do not collapse to two."""
    item = x.element_size()
    if x.is_contiguous():
        return _cpu.Rows(x.data_ptr(), 1, x.shape[-1] * item, 0)
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1]):
        if size == 1:
            continue
        if sizes and strides[-1] == size * stride:  # collapses into the dimension before
            sizes[-1], strides[-1] = sizes[-1] * size, stride
        else:
            sizes.append(size)
            strides.append(stride)
    if len(sizes) > 2:
        return None
    sizes, strides = [1] * (2 - len(sizes)) + sizes, [0] * (2 - len(strides)) + strides
    return _cpu.Rows(x.data_ptr(), sizes[1], strides[0] * item, strides[1] * item)


_NONE = None if _reason else _cpu.Rows(0, 1, 0, 0)
