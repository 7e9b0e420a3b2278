"""A place in a model where rows are steered, normalised or both, bound once: what a step pays is the rows alone.

Checks, addresses, strides and the choice of a kernel cost more than a launch, and they are the same in every
step. A site keeps them; what may change from call to call (the rows, their number, `token_row`, the stream) is
all that it looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import backends, checks
from .table import SteerTable

# (x, token_row) → the normalised stream, of contiguous rows; x is steered in place.
Bound = Callable[[Tensor, "Tensor | None"], Tensor]
# The same without a norm.
BoundSteer = Callable[[Tensor, "Tensor | None"], None]
# The normalised rows of contiguous ones.
BoundNorm = Callable[[Tensor], Tensor]


class _Place:
    """What was bound, by the dtype of the rows and the backend that is asked for."""

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._bound: dict[tuple[torch.dtype, str | None], Callable[..., Any]] = {}

    def _keep(self, x: Tensor, bound: Callable[..., Any]) -> Callable[..., Any]:
        self._bound[x.dtype, backends.asked_here()] = bound
        return bound


class _Norm(_Place):
    """A place with a norm, whose weight may move."""

    def __init__(self, weight: Tensor, eps: float, weight_offset: float) -> None:
        super().__init__(weight.shape[-1])
        self.weight, self.eps, self.weight_offset = weight, checks.eps(eps), float(weight_offset)
        self._address = 0

    def _weight_has_moved(self, x: Tensor) -> None:
        checks.norm_weight(self.weight, x)
        self._bound.clear()
        self._address = self.weight.data_ptr()


class _Steering(_Place):
    """A place with a table, to which the rows of each call are held."""

    def _steers(self, directions: Tensor, table: SteerTable, scale: float) -> None:
        self.directions, self.table, self.scale = directions, table, checks.scale(scale)
        self._dim, self._rows = directions.shape[-1], table.rows
        self._device = directions.device

    def _row(self, x: Tensor, token_row: Tensor | None) -> Tensor | None:
        """`token_row` as the kernels take it, once the rows of a call are found in order."""
        if x.shape[-1] != self._dim or x.device != self._device or not x.is_contiguous():
            self._refuse(x)
        if token_row is None:
            if (x.numel() // self._dim) % self._rows:
                checks.table(self.table, x.numel() // self._dim, None, x)
        elif (
            token_row.dtype is not torch.int32
            or token_row.numel() * self._dim != x.numel()
            or token_row.device != self._device
            or not token_row.is_contiguous()
        ):
            token_row = checks.index(token_row, "token_row", x.numel() // self._dim, x)
        return token_row

    def _check(self, x: Tensor) -> None:
        """What holds for every call, looked at when it is bound."""
        checks.rows_of(x)
        checks.directions(self.directions, x)
        checks.table(self.table, self._rows, None, x)

    def _refuse(self, x: Tensor) -> None:
        checks.rows_of(x)
        checks.directions(self.directions, x)
        raise ValueError(
            f"x must have contiguous rows for a bound site, got strides {tuple(x.stride())}; "
            f"call .contiguous() first, or the operation of emosteer.ops"
        )


class NormSite(_Norm):
    """`rms_norm` with everything but the rows bound: `normed = site(x)`.

    Formula, arguments and errors as `emosteer.ops.rms_norm`. A weight that moves, to another address or type, is
    bound anew; rows that are not contiguous take the operation.

    Args:
        weight: `[D]` of the norm.
        eps, weight_offset: as in `rms_norm`.

    Raises:
        TypeError, ValueError: the message names the argument.
    """

    def __init__(self, weight: Tensor, *, eps: float = 1e-6, weight_offset: float = 0.0) -> None:
        super().__init__(weight, eps, weight_offset)

    def __call__(self, x: Tensor) -> Tensor:
        """The normalised rows of `x` `[..., D]`."""
        if self.weight.data_ptr() != self._address:
            self._weight_has_moved(x)
        bound = self._bound.get((x.dtype, backends.asked_here())) or self._bind(x)
        if x.shape[-1] != self._dim or x.device != self.weight.device or not x.is_contiguous():
            checks.rows_of(x)
            checks.norm_weight(self.weight, x)
            return backends.of(x.device).rms_norm(x, self.weight, self.eps, self.weight_offset)
        return bound(x) if x.numel() else torch.empty_like(x)

    def _bind(self, x: Tensor) -> BoundNorm:
        checks.rows_of(x)
        return self._keep(x, bind_norm(backends.of(x.device), self, x.dtype))


class SteerSite(_Steering):
    """`steer_` with everything but the rows bound: `site(x, token_row)`.

    Formula, arguments and errors as `emosteer.ops.steer_`; what is bound is checked once, here. The table's
    values may change at any time.

    Args:
        directions: float32 `[K, D]` unit rows.
        table: what each row does.
        scale: as in `steer_`.

    Raises:
        TypeError, ValueError: the message names the argument.
    """

    def __init__(self, directions: Tensor, table: SteerTable, *, scale: float = 1.0) -> None:
        super().__init__(directions.shape[-1])
        self._steers(directions, table, scale)

    def __call__(self, x: Tensor, token_row: Tensor | None = None) -> Tensor:
        """Steer `x` `[..., D]`, contiguous, in place; `x`."""
        bound = self._bound.get((x.dtype, backends.asked_here())) or self._bind(x)
        token_row = self._row(x, token_row)
        if x.numel():
            bound(x, token_row)
        return x

    def _bind(self, x: Tensor) -> BoundSteer:
        self._check(x)
        return self._keep(x, bind_steer(backends.of(x.device), self, x.dtype))


class Site(_Norm, _Steering):
    """`steer_rms_norm_` with everything but the rows bound: `normed = site(x, token_row)`.

    Formula, arguments and errors as `emosteer.ops.steer_rms_norm_`, without a residual; what is bound is
    checked once, here. The table's values may change at any time. A norm's weight that moves, to another
    address or type, is bound anew.

    Args:
        weight: `[D]` of the norm.
        directions: float32 `[K, D]` unit rows.
        table: what each row does.
        scale, eps, weight_offset: as in `steer_rms_norm_`.

    Raises:
        TypeError, ValueError: the message names the argument.
    """

    def __init__(
        self,
        weight: Tensor,
        directions: Tensor,
        table: SteerTable,
        *,
        scale: float = 1.0,
        eps: float = 1e-6,
        weight_offset: float = 0.0,
    ) -> None:
        super().__init__(weight, eps, weight_offset)
        self._steers(directions, table, scale)

    def __call__(self, x: Tensor, token_row: Tensor | None = None) -> Tensor:
        """Steer `x` `[..., D]`, contiguous, in place; the normalised stream."""
        if self.weight.data_ptr() != self._address:
            self._weight_has_moved(x)
        bound = self._bound.get((x.dtype, backends.asked_here())) or self._bind(x)
        token_row = self._row(x, token_row)
        return bound(x, token_row) if x.numel() else torch.empty_like(x)

    def _bind(self, x: Tensor) -> Bound:
        self._check(x)
        return self._keep(x, bind(backends.of(x.device), self, x.dtype))


def bind(run: ModuleType, site: Site, dtype: torch.dtype) -> Bound:
    """By what a backend has for it, or by its operation."""
    if hasattr(run, "bind"):
        return run.bind(site, dtype)
    rest = site.scale, None, site.eps, site.weight_offset
    return lambda x, row: run.steer_rms_norm_(x, site.weight, site.directions, site.table, row, *rest)


def bind_steer(run: ModuleType, site: SteerSite, dtype: torch.dtype) -> BoundSteer:
    """By what a backend has for it, or by its operation."""
    if hasattr(run, "bind_steer"):
        return run.bind_steer(site, dtype)
    return lambda x, row: run.steer_(x, site.directions, site.table, row, site.scale)


def bind_norm(run: ModuleType, site: NormSite, dtype: torch.dtype) -> BoundNorm:
    """By what a backend has for it, or by its operation."""
    if hasattr(run, "bind_norm"):
        return run.bind_norm(site, dtype)
    return lambda x: run.rms_norm(x, site.weight, site.eps, site.weight_offset)
