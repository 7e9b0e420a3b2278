"""A place in a model where rows are steered and normalised, bound once: what a step pays is the rows alone.

Checks, addresses, strides and the choice of a kernel cost more than a launch, and they are the same in every
step. A site keeps them; what may change from call to call (the rows, their number, `token_row`, the stream) is
all that it looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from . import backends, checks
from .table import SteerTable

# (x, token_row) → the normalised stream, of contiguous rows; x is steered in place.
Bound = Callable[[Tensor, "Tensor | None"], Tensor]


class Site:
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
        self.weight, self.directions, self.table = weight, directions, table
        self.scale, self.eps, self.weight_offset = checks.scale(scale), checks.eps(eps), float(weight_offset)
        self._dim, self._rows = directions.shape[-1], table.rows
        self._device = directions.device
        self._bound: dict[tuple[torch.dtype, str | None], Bound] = {}
        self._address = 0

    def __call__(self, x: Tensor, token_row: Tensor | None = None) -> Tensor:
        """Steer `x` `[..., D]`, contiguous, in place; the normalised stream."""
        if self.weight.data_ptr() != self._address:
            self._check(x)
        bound = self._bound.get((x.dtype, backends.asked_here())) or self._bind(x)
        if x.shape[-1] != self._dim or x.device != self._device or not x.is_contiguous():
            self._refuse(x)
        if token_row is None:
            if (x.numel() // self._dim) % self._rows:
                checks.table(self.table, x.numel() // self._dim, None, x)
        elif token_row.dtype is not torch.int32 or token_row.numel() * self._dim != x.numel():
            token_row = checks.index(token_row, "token_row", x.numel() // self._dim, x)
        return bound(x, token_row)

    def _check(self, x: Tensor) -> None:
        checks.norm_weight(self.weight, x)
        self._bound.clear()
        self._address = self.weight.data_ptr()

    def _bind(self, x: Tensor) -> Bound:
        checks.rows_of(x)
        checks.directions(self.directions, x)
        checks.table(self.table, self._rows, None, x)
        bound = bind(backends.of(x.device), self, x.dtype)
        self._bound[x.dtype, backends.asked_here()] = bound
        return bound

    def _refuse(self, x: Tensor) -> None:
        checks.rows_of(x)
        checks.directions(self.directions, x)
        raise ValueError(
            f"x must have contiguous rows for a bound site, got strides {tuple(x.stride())}; "
            f"call .contiguous() first, or emosteer.ops.steer_rms_norm_"
        )


def bind(run: ModuleType, site: Site, dtype: torch.dtype) -> Bound:
    """By what a backend has for it, or by its operation."""
    if hasattr(run, "bind"):
        return run.bind(site, dtype)
    rest = site.scale, None, site.eps, site.weight_offset
    return lambda x, row: run.steer_rms_norm_(x, site.weight, site.directions, site.table, row, *rest)
