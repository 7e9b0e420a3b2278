"""The operations as `torch.ops.emosteer.*`: schemas, fakes and gradients, for torch.compile and friends.

Operators take the columns of a table and the tensors of moments one by one, since a schema knows no
classes. `Library.define/impl` rather than `custom_op`: a quarter of its overhead a call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import public, reference
from .moment_tensors import MomentTensors
from .table import SteerTable

_TABLE = (
    "Tensor direction, Tensor strength, Tensor low, Tensor high, Tensor rotate, "
    "Tensor preserve_norm, Tensor relative"
)
_library = torch.library.Library("emosteer", "DEF")


def _define(schema: str, implementation) -> str:
    name = schema.split("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    return f"emosteer::{name}"


def _project(x: Tensor, directions: Tensor, center: Tensor | None, cosine: bool) -> Tensor:
    with torch.no_grad():
        return public.project(x, directions, center=center, cosine=cosine)


def _steer_(x: Tensor, directions: Tensor, *rest) -> None:
    *columns, token_row, scale = rest
    with torch.no_grad():
        public.steer_(x, directions, SteerTable.of(*columns), token_row, scale=scale)


def _steer(x: Tensor, directions: Tensor, *rest) -> Tensor:
    *columns, token_row, scale = rest
    with torch.no_grad():
        return public.steer(x, directions, SteerTable.of(*columns), token_row, scale=scale)


def _steer_backward(grad: Tensor, x: Tensor, directions: Tensor, *rest) -> list[Tensor]:
    *columns, token_row, scale = rest
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        directions = directions.detach().requires_grad_()
        values = [c.detach().requires_grad_() if c.is_floating_point() else c for c in columns]
        inputs = [x, directions, *(c for c in values if c.requires_grad)]
        y = reference.steer(x, directions, SteerTable(*values), token_row, scale)
        found = torch.autograd.grad(y, inputs, grad, allow_unused=True)
    return [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found)]


def _rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    with torch.no_grad():
        return public.rms_norm(x, weight, eps=eps, weight_offset=weight_offset)


def _steer_rms_norm_(x: Tensor, weight: Tensor, directions: Tensor, *rest) -> Tensor:
    *columns, token_row, scale, residual, eps, weight_offset = rest
    with torch.no_grad():
        return public.steer_rms_norm_(
            x,
            weight,
            directions,
            SteerTable.of(*columns),
            token_row,
            scale=scale,
            residual=residual,
            eps=eps,
            weight_offset=weight_offset,
        )[0]


def _moments_update_(
    count: Tensor,
    sum: Tensor,
    shift: Tensor,
    started: Tensor,
    scatter: Tensor | None,
    x: Tensor,
    token_group: Tensor | None,
    weight: Tensor | None,
) -> None:
    moments = object.__new__(MomentTensors)
    moments.count, moments.sum, moments.shift, moments.started, moments.scatter = (
        count,
        sum,
        shift,
        started,
        scatter,
    )
    with torch.no_grad():
        public.moments_update_(moments, x, token_group, weight)


PROJECT = _define("project(Tensor x, Tensor directions, Tensor? center, bool cosine) -> Tensor", _project)
STEER_ = _define(
    f"steer_(Tensor(a!) x, Tensor directions, {_TABLE}, Tensor? token_row, float scale) -> ()", _steer_
)
STEER = _define(
    f"steer(Tensor x, Tensor directions, {_TABLE}, Tensor? token_row, float scale) -> Tensor", _steer
)
STEER_BACKWARD = _define(
    f"steer_backward(Tensor grad, Tensor x, Tensor directions, {_TABLE}, Tensor? token_row, float scale) -> Tensor[]",
    _steer_backward,
)
RMS_NORM = _define("rms_norm(Tensor x, Tensor weight, float eps, float weight_offset) -> Tensor", _rms_norm)
STEER_RMS_NORM_ = _define(
    f"steer_rms_norm_(Tensor(a!) x, Tensor weight, Tensor directions, {_TABLE}, Tensor? token_row, "
    "float scale, Tensor? residual, float eps, float weight_offset) -> Tensor",
    _steer_rms_norm_,
)
MOMENTS_UPDATE_ = _define(
    "moments_update_(Tensor(a!) count, Tensor(b!) sum, Tensor(c!) shift, Tensor(d!) started, "
    "Tensor(e!)? scatter, Tensor x, Tensor? token_group, Tensor? weight) -> ()",
    _moments_update_,
)


# ---- fakes: shapes and dtypes of the results ------------------------------------------------------


@torch.library.register_fake(PROJECT, lib=_library)
def _(x, directions, center, cosine):
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((*x.shape[:-1], directions.shape[0]), dtype=dtype)


@torch.library.register_fake(STEER_, lib=_library)
def _(x, *_rest):
    return None


@torch.library.register_fake(STEER, lib=_library)
def _(x, *_rest):
    return x.new_empty(x.shape)


@torch.library.register_fake(STEER_BACKWARD, lib=_library)
def _(grad, x, directions, direction, strength, low, high, rotate, *_rest):
    return [torch.empty_like(t) for t in (x, directions, strength, low, high, rotate)]


@torch.library.register_fake(RMS_NORM, lib=_library)
def _(x, weight, eps, weight_offset):
    return x.new_empty(x.shape)


@torch.library.register_fake(STEER_RMS_NORM_, lib=_library)
def _(x, *_rest):
    return x.new_empty(x.shape)


@torch.library.register_fake(MOMENTS_UPDATE_, lib=_library)
def _(*_args):
    return None


# ---- gradients: outside the operators, in plain torch -----------------------------------------------


def _steer_setup(ctx, inputs, output) -> None:
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors)
    ctx.scale = scale


def _steer_grad(ctx, grad):
    found = torch.ops.emosteer.steer_backward.default(grad, *ctx.saved_tensors, ctx.scale)
    x, directions, strength, low, high, rotate = found
    return x, directions, None, strength, low, high, rotate, None, None, None, None


def _project_setup(ctx, inputs, output) -> None:
    x, directions, center, cosine = inputs
    ctx.save_for_backward(x, directions, center)
    ctx.cosine = cosine


def _project_grad(ctx, grad):
    x, directions, center = ctx.saved_tensors
    if ctx.cosine:
        raise RuntimeError("project(cosine=True) has no gradient; divide the projection by the norm yourself")
    rows = x.float() if x.dtype != torch.float64 else x
    if center is not None:
        rows = rows - center
    flat = grad.reshape(-1, directions.shape[0])
    to_x = (grad @ directions).to(x.dtype)
    to_center = None if center is None else -(flat.sum(0) @ directions).to(center.dtype)
    return to_x, flat.T @ rows.reshape(-1, rows.shape[-1]), to_center, None


def _rms_norm_setup(ctx, inputs, output) -> None:
    x, weight, ctx.eps, ctx.weight_offset = inputs
    ctx.save_for_backward(x, weight)


def _rms_norm_grad(ctx, grad):
    x, weight = ctx.saved_tensors
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    rows, up = x.to(wide), grad.to(wide)
    inverse = torch.rsqrt(rows.square().mean(-1, keepdim=True) + ctx.eps)
    unit = rows * inverse
    scaled = up * (weight.to(wide) + ctx.weight_offset)
    to_x = inverse * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))
    to_weight = (up * unit).reshape(-1, x.shape[-1]).sum(0)
    return to_x.to(x.dtype), to_weight.to(weight.dtype), None, None


torch.library.register_autograd(STEER, _steer_grad, setup_context=_steer_setup, lib=_library)
torch.library.register_autograd(PROJECT, _project_grad, setup_context=_project_setup, lib=_library)
torch.library.register_autograd(RMS_NORM, _rms_norm_grad, setup_context=_rms_norm_setup, lib=_library)
