"""What every operation checks at its edge, once, so that backends can trust their arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from .moment_tensors import MomentTensors
from .table import SteerTable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# How far a direction's length may be from 1: far above fp32 rounding, far below what steering shows.
UNIT_TOLERANCE = 1e-5
_INT32_MAX = 2**31 - 1


def tensor(x: Tensor, name: str = "x") -> Tensor:
    """A tensor, whatever its device."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    return x


def rows_of(x: Tensor, name: str = "x", *, exact: bool = False) -> int:
    """The number of rows of a residual-stream tensor `[..., D]`; `exact` admits float64 (reference only)."""
    tensor(x, name)
    dtype, shape = x.dtype, x.shape
    if dtype not in DTYPES and not (exact and dtype == torch.float64):
        raise TypeError(f"{name} must be float32, bfloat16 or float16, got {_dtype(x)}")
    if not shape:
        raise ValueError(f"{name} must be [..., D], got a scalar")
    dim = shape[-1]
    if dim == 0:
        raise ValueError(f"{name} must have at least one column, got shape {list(shape)}")
    if not x.is_contiguous() and dim > 1 and x.stride(-1) != 1 and x.numel():
        raise ValueError(
            f"{name} must be contiguous in its last dimension, "
            f"got strides {tuple(x.stride())}; call .contiguous() first"
        )
    return x.numel() // dim


def directions(directions: Tensor, x: Tensor) -> None:
    """float32 `[K, D]` unit rows on the device of `x`; the lengths are checked once per tensor and version."""
    tensor(directions, "directions")
    if directions.device != x.device:
        raise ValueError(f"directions are on {directions.device}, x is on {x.device}")
    version = 0 if directions.is_inference() else directions._version
    if getattr(directions, "_emosteer_unit", None) != (version, directions.data_ptr()):
        _check_directions(directions, x)
        if not directions.requires_grad:
            directions._emosteer_unit = (version, directions.data_ptr())  # type: ignore[attr-defined]
    if directions.shape[1] != x.shape[-1]:
        raise ValueError(f"directions have {directions.shape[1]} columns, x has {x.shape[-1]}")


def _check_directions(directions: Tensor, x: Tensor) -> None:
    exact = x.dtype == torch.float64
    if directions.dtype != torch.float32 and not (exact and directions.dtype == torch.float64):
        raise TypeError(f"directions must be float32, got {_dtype(directions)}")
    if directions.ndim != 2:
        raise ValueError(f"directions must be [K, D], got shape {list(directions.shape)}")
    if not directions.is_contiguous():
        raise ValueError(
            f"directions must be contiguous, got strides {tuple(directions.stride())}; call .contiguous() first"
        )
    if directions.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # a graph cannot be asked for values; the same tensor was checked when it was warmed up
    length = torch.linalg.vector_norm(directions.detach(), dim=1, dtype=torch.float64)
    bad = ~((length - 1).abs() <= UNIT_TOLERANCE)
    if bad.any():
        k = int(bad.nonzero()[0])
        raise ValueError(
            f"directions[{k}] has length {length[k].item():g}, expected 1 (to {UNIT_TOLERANCE:g}); "
            f"normalise the rows first: directions / directions.norm(dim=1, keepdim=True)"
        )


def table(table: SteerTable, rows: int, token_row: Tensor | None, x: Tensor) -> None:
    """A table on the device of `x` that fits its rows."""
    if not isinstance(table, SteerTable):
        raise TypeError(f"table must be a SteerTable, got {type(table).__name__}")
    column = table.direction
    if column.device != x.device:
        raise ValueError(f"table is on {column.device}, x is on {x.device}")
    if token_row is None and rows % column.shape[0]:
        raise ValueError(
            f"x has {rows} rows, which do not divide evenly over the {column.shape[0]} rows of the table; "
            f"pass token_row to say which row each token takes"
        )


def index(index: Tensor | None, name: str, rows: int, x: Tensor) -> Tensor | None:
    """A contiguous int32 index a row of `x`, −1 for none; values are checked by the CPU backends."""
    if index is None:
        return None
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(index).__name__}")
    if index.numel() != rows:
        raise ValueError(
            f"{name} has {index.numel()} entries (shape {list(index.shape)}), "
            f"expected one for each of the {rows} rows of x"
        )
    if index.device != x.device:
        raise ValueError(f"{name} is on {index.device}, x is on {x.device}")
    if index.dtype == torch.int64:
        index = index.clamp(-2, _INT32_MAX).to(torch.int32)  # what is outside stays outside
    elif index.dtype != torch.int32:
        raise TypeError(f"{name} must be int32 (or int64, which is converted), got {_dtype(index)}")
    return index if index.is_contiguous() else index.contiguous()


def writable(x: Tensor) -> None:
    """No two rows in the same memory: each is steered its own way."""
    if not x.is_contiguous() and any(n > 1 and s == 0 for n, s in zip(x.shape, x.stride())):
        raise ValueError(
            f"x has rows that share memory (strides {tuple(x.stride())}) and cannot be written in place; "
            f"call .contiguous() first, or use the operation that returns a new tensor"
        )


def scale(scale: float) -> float:
    """A finite number."""
    value = float(scale)
    if value - value != 0:
        raise ValueError(f"scale must be a finite number, got {value}")
    return value


def norm_weight(weight: Tensor, x: Tensor) -> Tensor:
    """`[D]`, on the device of `x`."""
    tensor(weight, "weight")
    if weight.dtype not in DTYPES and not (x.dtype == weight.dtype == torch.float64):
        raise TypeError(f"weight must be float32, bfloat16 or float16, got {_dtype(weight)}")
    if weight.ndim != 1 or weight.shape[0] != x.shape[-1]:
        raise ValueError(
            f"weight must have shape [{x.shape[-1]}], as the columns of x, got {list(weight.shape)}"
        )
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, x is on {x.device}")
    return weight if weight.is_contiguous() else weight.contiguous()


def eps(eps: float) -> float:
    """A number of at least 0."""
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    return float(eps)


def residual(residual: Tensor | None, x: Tensor) -> None:
    """A tensor like `x`."""
    if residual is None:
        return
    rows_of(residual, "residual", exact=True)
    if residual.shape != x.shape or residual.dtype != x.dtype or residual.device != x.device:
        raise ValueError(
            f"residual must be like x, {list(x.shape)} {_dtype(x)} on {x.device}, "
            f"got {list(residual.shape)} {_dtype(residual)} on {residual.device}"
        )


def center(center: Tensor | None, x: Tensor) -> Tensor | None:
    """float32 `[D]` on the device of `x`."""
    if center is None:
        return None
    if not isinstance(center, Tensor):
        raise TypeError(f"center must be a torch.Tensor or None, got {type(center).__name__}")
    if not center.is_floating_point():
        raise TypeError(f"center must be float32, got {_dtype(center)}")
    if center.ndim != 1 or center.shape[0] != x.shape[-1]:
        raise ValueError(
            f"center must have shape [{x.shape[-1]}], as the columns of x, got {list(center.shape)}"
        )
    if center.device != x.device:
        raise ValueError(f"center is on {center.device}, x is on {x.device}")
    return center if x.dtype == torch.float64 else center.float().contiguous()


def moments(moments: MomentTensors, x: Tensor) -> None:
    """Moments of the width and device of `x`."""
    if not isinstance(moments, MomentTensors):
        raise TypeError(f"moments must be a Moments, got {type(moments).__name__}")
    if moments.dim != x.shape[-1]:
        raise ValueError(f"moments have width {moments.dim}, x has {x.shape[-1]} columns")
    if moments.device != x.device:
        raise ValueError(f"moments are on {moments.device}, x is on {x.device}")


def token_weight(weight: Tensor | None, rows: int, x: Tensor) -> Tensor | None:
    """float32 `[N]`, none negative."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a torch.Tensor or None, got {type(weight).__name__}")
    if weight.numel() != rows:
        raise ValueError(
            f"weight has {weight.numel()} entries (shape {list(weight.shape)}), "
            f"expected one for each of the {rows} rows of x"
        )
    if not weight.is_floating_point():
        raise TypeError(f"weight must be a floating-point tensor, got {_dtype(weight)}")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}, x is on {x.device}")
    weight = weight.reshape(-1).float().contiguous()
    if weight.device.type == "cpu" and rows and not bool((weight >= 0).all()):
        n = int((~(weight >= 0)).nonzero()[0])
        raise ValueError(f"weight[{n}] is {weight[n].item()}, expected a number of at least 0")
    return weight


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
