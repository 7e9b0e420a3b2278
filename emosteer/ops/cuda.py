"""The backend of compiled CUDA kernels (`kernels/cuda`, `csrc/cuda`), for NVIDIA GPUs.

One launch a call, on the current stream, without a sync or an allocation beside the result. A row lives
in registers, so rows are at most 8192 wide and a table has at most 32 slots; what goes beyond (`limit`
tells) and moments run on Triton. Values of indices are not checked, as that would wait for the device:
what is out of range is taken as empty, and `SteerTable.validate` reports it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from . import backends, cuda_module, sites
from .moment_tensors import MomentTensors
from .sites import Bound, BoundNorm, BoundSteer, NormSite, Site, SteerSite
from .strides import collapsed
from .table import SteerTable

MAX_DIM = 8192
MAX_SLOTS = 32
_MAX_ROWS = 2**31 - 1
_MAX_DIRECTIONS = 4 * 65535
_OLDEST = (8, 0)

_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_cuda: ModuleType | None = None
_handles: WeakKeyDictionary[SteerTable, tuple] = WeakKeyDictionary()


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    global _cuda
    if _cuda is not None:
        return None
    if torch.version.hip is not None:
        return "this torch is for AMD GPUs, for which the triton backend is made"
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    if (found := torch.cuda.get_device_capability()) < _OLDEST:
        return f"the GPU has compute capability {found[0]}.{found[1]}, the kernels need 8.0 or later"
    try:
        module = cuda_module.load()
    except RuntimeError as error:
        return str(error)
    try:
        module.launch_nothing(torch.cuda.current_device())
    except RuntimeError as error:
        return (
            f"emosteer._cuda loads but cannot launch an empty kernel ({error}); built for another driver or GPU, "
            f"it is built anew by EMOSTEER_CUDA=1 pip install --force-reinstall --no-deps --no-binary emosteer "
            f"emosteer with a toolkit that is no newer than the driver"
        )
    _cuda = module
    return None


def limit(rows: int, dim: int, *, slots: int = 1, directions: int = 1) -> str | None:
    """Why these kernels cannot take a call of this size, None if they can."""
    if dim > MAX_DIM:
        return f"rows of {dim} columns do not fit the registers of one block (at most {MAX_DIM})"
    if slots > MAX_SLOTS:
        return f"{slots} slots are more than the lanes of a warp ({MAX_SLOTS}), which solve them side by side"
    if rows > _MAX_ROWS or directions > _MAX_DIRECTIONS:
        return f"{rows} rows and {directions} directions are more than one launch counts"
    return None


def steer_(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> None:
    k, dim = directions.shape
    rows = x.numel() // dim
    if limit(rows, dim, slots=table.slots):
        return _rest().steer_(x, directions, table, token_row, scale)
    if not x.is_contiguous():
        if (view := _rows(x)) is None:
            steered = x.contiguous()
            steer_(steered, directions, table, token_row, scale)
            x.copy_(steered)
        else:
            _steer(x, view, view, directions, table, token_row, scale)
        return
    _module(x).steer_rows(
        _CODE[x.dtype],
        x.data_ptr(),
        rows,
        dim,
        dim * x.element_size(),
        directions.data_ptr(),
        k,
        _columns(table, x),
        _address(token_row),
        scale,
        *_place(x),
    )


def steer(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> Tensor:
    if limit(x.numel() // x.shape[-1], x.shape[-1], slots=table.slots):
        return _rest().steer(x, directions, table, token_row, scale)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    view = _rows(x) or _rows(x := x.contiguous())
    _steer(x, view, _rows(out), directions, table, token_row, scale)
    return out


def _steer(x: Tensor, view, out, directions: Tensor, table: SteerTable, token_row, scale: float) -> None:
    k, dim = directions.shape
    _module(x).steer(
        _CODE[x.dtype],
        view,
        out,
        x.numel() // dim,
        dim,
        directions.data_ptr(),
        k,
        _columns(table, x),
        _address(token_row),
        scale,
        *_place(x),
    )


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
    k, dim = directions.shape
    rest = weight, directions, table, token_row, scale, residual, eps, weight_offset
    if limit(x.numel() // dim, dim, slots=table.slots):
        return _rest().steer_rms_norm_(x, *rest)
    if (view := _rows(x)) is None:
        stream = x.contiguous()
        normed = steer_rms_norm_(stream, *rest)
        x.copy_(stream)
        return normed
    normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    other = _module(x).Rows(0, 1, 0, 0)
    if residual is not None:
        other = _rows(residual) or _rows(residual := residual.contiguous())
    _module(x).steer_rms_norm(
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
        _columns(table, x),
        _address(token_row),
        scale,
        *_place(x),
    )
    return normed


def bind(site: Site, dtype: torch.dtype) -> Bound:
    """`steer_rms_norm_` of contiguous rows of a dtype, all but the rows kept in C++."""
    weight, dim = site.weight, site.directions.shape[1]
    if limit(1, dim, slots=site.table.slots):
        return sites.bind(_rest(), site, dtype)
    norm = weight.data_ptr(), _CODE[weight.dtype], site.eps, site.weight_offset
    run, stream, place = _kept(site, dtype, *norm)
    empty_like = torch.empty_like

    def bound(x: Tensor, token_row: Tensor | None) -> Tensor:
        normed = empty_like(x)
        row = 0 if token_row is None else token_row.data_ptr()
        run(x.data_ptr(), normed.data_ptr(), x.numel() // dim, row, stream(place))
        return normed

    return bound


def bind_steer(site: SteerSite, dtype: torch.dtype) -> BoundSteer:
    """`steer_` of contiguous rows of a dtype, all but the rows kept in C++."""
    dim = site.directions.shape[1]
    if limit(1, dim, slots=site.table.slots):
        return sites.bind_steer(_rest(), site, dtype)
    run, stream, place = _kept(site, dtype)

    def bound(x: Tensor, token_row: Tensor | None) -> None:
        row = 0 if token_row is None else token_row.data_ptr()
        run(x.data_ptr(), 0, x.numel() // dim, row, stream(place))

    return bound


def bind_norm(site: NormSite, dtype: torch.dtype) -> BoundNorm:
    """`rms_norm` of contiguous rows of a dtype, all but the rows kept in C++."""
    weight, dim = site.weight, len(site.weight)
    if limit(1, dim):
        return sites.bind_norm(_rest(), site, dtype)
    stream, place = _stream_of(weight.device)
    norm = weight.data_ptr(), _CODE[weight.dtype], site.eps, site.weight_offset
    run = _module(weight).Norm(_CODE[dtype], dim, dtype.itemsize, *norm, place).run
    empty_like = torch.empty_like

    def bound(x: Tensor) -> Tensor:
        normed = empty_like(x)
        run(x.data_ptr(), normed.data_ptr(), x.numel() // dim, stream(place))
        return normed

    return bound


def _kept(
    site: Site | SteerSite,
    dtype: torch.dtype,
    weight: int = 0,
    weight_dtype: int = 0,
    eps: float = 0.0,
    weight_offset: float = 0.0,
) -> tuple[Callable[..., None], Callable[[int], int], int]:
    """`run(x, normed, rows, token_row, stream)` by addresses, what gives a stream's, and the device's number."""
    directions = site.directions
    stream, place = _stream_of(directions.device)
    kept = _module(directions).Site(
        _CODE[dtype],
        directions.shape[1],
        dtype.itemsize,
        directions.data_ptr(),
        len(directions),
        _columns(site.table, directions),
        site.scale,
        weight,
        weight_dtype,
        eps,
        weight_offset,
        place,
    )
    return kept.run, stream, place


def _stream_of(device: torch.device) -> tuple[Callable[[int], int], int]:
    """What gives the address of a device's current stream, and the device's number for it; as `_place`."""
    if device.type != "cuda":
        return lambda _device: 0, 0
    return torch._C._cuda_getCurrentRawStream, device.index


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    dim = x.shape[-1]
    if limit(x.numel() // dim, dim):
        return _rest().rms_norm(x, weight, eps, weight_offset)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    view = _rows(x) or _rows(x := x.contiguous())
    _module(x).rms_norm(
        _CODE[x.dtype],
        view,
        _rows(out),
        x.numel() // dim,
        dim,
        weight.data_ptr(),
        _CODE[weight.dtype],
        eps,
        weight_offset,
        *_place(x),
    )
    return out


def project(x: Tensor, directions: Tensor, center: Tensor | None, cosine: bool) -> Tensor:
    k, dim = directions.shape
    rows = x.numel() // dim
    if limit(rows, dim, directions=k):
        return _rest().project(x, directions, center, cosine)
    dots = torch.empty(*x.shape[:-1], k, device=x.device)
    if not rows or not k:
        return dots
    view = _rows(x) or _rows(x := x.contiguous())
    _module(x).project(
        _CODE[x.dtype],
        view,
        rows,
        dim,
        directions.data_ptr(),
        k,
        _address(center),
        cosine,
        dots.data_ptr(),
        *_place(x),
    )
    return dots


def moments_update_(
    moments: MomentTensors, x: Tensor, token_group: Tensor | None, weight: Tensor | None
) -> None:
    _rest().moments_update_(moments, x, token_group, weight)


def _rest() -> ModuleType:
    """The backend for what these kernels do not take."""
    return import_module(f"emosteer.ops.{'reference' if backends.unavailable('triton') else 'triton'}")


def _module(x: Tensor) -> ModuleType:
    if _cuda is None:
        raise RuntimeError(f"the cuda backend cannot run: {unavailable()}")
    if x.device.type != _cuda.device_type:
        raise ValueError(
            f"x is on {x.device}, the cuda backend takes tensors on a {_cuda.device_type} device"
        )
    return _cuda


def _place(x: Tensor) -> tuple[int, int]:
    """The device's number and the address of its current stream; a host build has one of each."""
    if not x.is_cuda:
        return 0, 0
    return x.device.index, torch._C._cuda_getCurrentRawStream(x.device.index)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _columns(table: SteerTable, x: Tensor):
    """The kernels' view of a table, its shapes and dtypes checked when it is made."""
    module = _module(x)
    known = _handles.get(table)
    if known is not None and known[0] is module:
        return known[1]
    for problem in table.astray():
        raise problem
    addresses = (column.data_ptr() for column in table.columns())
    handle = module.Table(table.rows, table.slots, *addresses, *table.strides)
    _handles[table] = module, handle
    return handle


def _rows(x: Tensor):
    """The rows of `x` by two strides; None where its leading dimensions do not collapse to two."""
    if (found := collapsed(x)) is None:
        return None
    inner, outer_stride, inner_stride = found
    item = x.element_size()
    return _module(x).Rows(x.data_ptr(), inner, outer_stride * item, inner_stride * item)
