"""The public operations: check the arguments once, then run the backend or, where torch is tracing, the operator."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from . import backends, checks, cpu, reference
from .interchange import shared
from .moment_tensors import MomentTensors
from .table import SteerTable

_Moments = TypeVar("_Moments", bound=MomentTensors)
_is_compiling = torch.compiler.is_compiling
_grad_enabled = torch.is_grad_enabled


def _traced(x: Tensor) -> bool:
    """Whether the call must go through torch's dispatcher: compilation, fake tensors, other subclasses."""
    return _is_compiling() or (
        type(x) is not Tensor and type(x) is not torch.nn.Parameter and isinstance(x, Tensor)
    )


def _gradient(*tensors: Tensor) -> bool:
    """Whether a gradient is wanted for one of these (arguments that are no tensors are told off later)."""
    return _grad_enabled() and any(getattr(t, "requires_grad", False) for t in tensors)


def project(x: Tensor, directions: Tensor, *, center: Tensor | None = None, cosine: bool = False) -> Tensor:
    """Project rows on directions.

        scores = (x − center) · directionsᵀ          cosine: divided by ‖x − center‖, 0 where that is 0

    Args:
        x: `[..., D]` float32, bfloat16 or float16, last dimension contiguous; a tensor, or an array of
            NumPy or any library that speaks DLPack, in the memory of the CPU, which is not copied.
        directions: `[K, D]` float32, rows of unit length; a tensor or an array likewise.
        center: `[D]`, subtracted from every row first; a tensor or an array likewise.
        cosine: whether to divide by the length of the row.

    Returns:
        `[..., K]` float32, a tensor.

    Raises:
        TypeError, ValueError: a wrong dtype, shape, device or length; the message names the argument.
    """
    plain = center is None and not cosine
    if plain and not _is_compiling() and (dots := cpu.repeat_project(x, directions)) is not None:
        return dots
    if not (isinstance(x, Tensor) and isinstance(directions, Tensor)):
        x, directions = shared(x), shared(directions)
    center = shared(center)
    if _traced(x) or _gradient(x, directions):
        checks.rows_of(x, exact=True)
        return torch.ops.emosteer.project.default(x, directions, center, cosine)
    run = backends.of(checks.tensor(x).device)
    checks.rows_of(x, exact=run is reference)
    checks.directions(directions, x)
    dots = run.project(x, directions, checks.center(center, x), bool(cosine))
    if plain and run is cpu:
        cpu.remember_project(x, directions)
    return dots


def steer_(
    x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    """Steer rows of the residual stream in place, each by its row of the table (formula: `SteerTable`).

    Args:
        x: `[..., D]` float32, bfloat16 or float16, last dimension contiguous; rows of any stride.
        directions: `[K, D]` float32, rows of unit length.
        table: what each row of a batch does.
        token_row: int32, one entry a row of `x`: its row of the table, −1 to leave it bit for bit as
            it is. None for a dense batch: N rows spread evenly over the R rows of the table.
        scale: one unit of length, e.g. the layer's mean residual norm.

    Returns:
        `x`.

    Raises:
        TypeError, ValueError: the message names the argument; nothing has been written then.
        RuntimeError: `x` needs a gradient; use `steer`.
    """
    if token_row is None and not _is_compiling() and cpu.repeat_steer_(x, directions, table, scale):
        return x
    if _traced(x):
        _steer_traced(x, directions, table, token_row, scale)
        return x
    if _gradient(x):
        raise RuntimeError(
            "steer_ writes in place and x requires a gradient; use steer, which is differentiable"
        )
    run = backends.of(checks.tensor(x).device)
    rows = checks.rows_of(x, exact=run is reference)
    checks.directions(directions, x)
    checks.table(table, rows, token_row, x)
    checks.writable(x)
    if token_row is not None:
        token_row = checks.index(token_row, "token_row", rows, x)
    if rows:
        run.steer_(x, directions, table, token_row, checks.scale(scale))
        if run is cpu and token_row is None:
            cpu.remember_steer_(x, directions, table)
    return x


def _steer_traced(
    x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float
) -> None:
    torch.ops.emosteer.steer_.default(x, directions, *table.columns(), token_row, scale)


def steer(
    x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    """`steer_` out of place, with gradients for `x`, `directions` and the table's strengths, bounds and angles.

    Arguments and errors as `steer_`. Returns a new contiguous tensor. The backend `reference` also
    takes float64, for gradient checks.
    """
    if (
        _traced(x)
        or _gradient(x, directions)
        or (isinstance(table, SteerTable) and _gradient(*table.columns()))
    ):
        return torch.ops.emosteer.steer.default(x, directions, *table.columns(), token_row, scale)
    run = backends.of(checks.tensor(x).device)
    rows = checks.rows_of(x, exact=run is reference)
    checks.directions(directions, x)
    checks.table(table, rows, token_row, x)
    token_row = checks.index(token_row, "token_row", rows, x)
    if not rows:
        return torch.empty_like(x)
    return run.steer(x, directions, table, token_row, checks.scale(scale))


def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6, weight_offset: float = 0.0) -> Tensor:
    """Root-mean-square norm, as in Hugging Face models (Zhang & Sennrich, 2019).

        y = x / sqrt(mean(x²) + eps) · (weight + weight_offset)

    Computed in float32 and rounded once to the dtype of `x`.

    Args:
        x: `[..., D]` float32, bfloat16 or float16.
        weight: `[D]`, of any of these dtypes.
        eps: added to the mean square.
        weight_offset: 1.0 for models that store the weight less one (Gemma).

    Returns:
        like `x`, contiguous.

    Raises:
        TypeError, ValueError: the message names the argument.
    """
    if _traced(x) or _gradient(x, weight):
        return torch.ops.emosteer.rms_norm.default(x, weight, eps, weight_offset)
    run = backends.of(checks.tensor(x).device)
    rows = checks.rows_of(x, exact=run is reference)
    weight = checks.norm_weight(weight, x)
    if not rows:
        return torch.empty_like(x)
    return run.rms_norm(x, weight, checks.eps(eps), float(weight_offset))


def steer_rms_norm_(
    x: Tensor,
    weight: Tensor,
    directions: Tensor,
    table: SteerTable,
    token_row: Tensor | None = None,
    *,
    scale: float = 1.0,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Steer the residual stream and normalise it for the next sublayer, in one pass.

        stream = steer(x + residual), rounded once, written to x;  normed = rms_norm(stream)

    Arguments and errors as `steer_` and `rms_norm`; `residual` is like `x`.

    Returns:
        `(normed, stream)`; `stream` is `x`.
    """
    if _traced(x):
        normed = torch.ops.emosteer.steer_rms_norm_.default(
            x, weight, directions, *table.columns(), token_row, scale, residual, eps, weight_offset
        )
        return normed, x
    if _gradient(x, weight):
        if x.requires_grad:
            raise RuntimeError(
                "steer_rms_norm_ writes in place and x requires a gradient; use steer, then rms_norm"
            )
        weight = weight.detach()
    run = backends.of(checks.tensor(x).device)
    rows = checks.rows_of(x, exact=run is reference)
    weight = checks.norm_weight(weight, x)
    checks.directions(directions, x)
    checks.table(table, rows, token_row, x)
    checks.writable(x)
    if token_row is not None:
        token_row = checks.index(token_row, "token_row", rows, x)
    checks.residual(residual, x)
    if not rows:
        return torch.empty_like(x), x
    normed = run.steer_rms_norm_(
        x,
        weight,
        directions,
        table,
        token_row,
        checks.scale(scale),
        residual,
        checks.eps(eps),
        float(weight_offset),
    )
    return normed, x


def moments_update_(
    moments: _Moments, x: Tensor, token_group: Tensor | None = None, weight: Tensor | None = None
) -> _Moments:
    """Count rows into streaming moments (formulas: `Moments`).

    Args:
        moments: updated in place.
        x: `[..., D]` float32, bfloat16 or float16; a tensor, or an array of NumPy or any library that
            speaks DLPack, in the memory of the CPU, which is not copied; `token_group` and `weight` likewise.
        token_group: int32, one entry a row of `x`: the group it counts for, −1 for none. None: all in group 0.
        weight: float32, one entry a row of `x`, at least 0. None: all 1.

    Returns:
        `moments`.

    Raises:
        TypeError, ValueError: the message names the argument; nothing has been counted then.
    """
    x, token_group, weight = shared(x), shared(token_group), shared(weight)
    if _traced(x):
        torch.ops.emosteer.moments_update_.default(
            moments.count,
            moments.sum,
            moments.shift,
            moments.started,
            moments.scatter,
            x,
            token_group,
            weight,
        )
        return moments
    x = checks.tensor(x).detach()
    run = backends.of(x.device)
    rows = checks.rows_of(x, exact=run is reference)
    checks.moments(moments, x)
    token_group = checks.index(token_group, "token_group", rows, x)
    weight = checks.token_weight(weight, rows, x)
    if rows:
        run.moments_update_(moments, x, token_group, weight)
    return moments
