"""A constant change of residual rows, as other libraries keep it, turned into directions and a table."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from emosteer import ops
from emosteer.ops import SteerTable, checks, cpu
from emosteer.ops.backends import asked_here


class Edit:
    """What happens to the rows of one place in a model (formula: `emosteer.ops.SteerTable`, scale 1).

    Args:
        vectors: `[R, D]`, one program a row; its rows need not have unit length. A row of zeros does
            nothing.
        push: add the vector.
        low, high: bounds of the projection on the vector's direction, before that is added.
        keep_norm: bring every row back to the norm it had.
    """

    def __init__(
        self,
        vectors: Tensor,
        *,
        push: bool = True,
        low: float = -math.inf,
        high: float = math.inf,
        keep_norm: bool = False,
    ) -> None:
        wide = vectors.detach().double()
        length = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
        used = length[:, 0] > 0
        # Out of inference mode: what is prepared once must serve in passes of either kind.
        with torch.inference_mode(False):
            self.directions = torch.where(used[:, None], wide / length, 0.0).float().clone()
            self.table = SteerTable.empty(len(vectors), device=vectors.device)
            numbers = torch.arange(len(vectors), dtype=torch.int32, device=vectors.device)
            self.table.direction[:, 0] = torch.where(used, numbers, -1)
            if push:
                self.table.strength.copy_(length)
            self.table.low[used] = low
            self.table.high[used] = high
            self.table.preserve_norm.fill_(int(keep_norm))
        # An unused direction must be of unit length all the same, or the check of the bank would refuse it.
        self.directions[~used, 0] = 1.0
        self._elsewhere: dict[torch.device, Edit] = {}
        self._last: tuple | None = None

    @classmethod
    def of(cls, directions: Tensor, table: SteerTable) -> Edit:
        """The edit that a table of several slots a row describes; both are the edit's from here on."""
        edit = object.__new__(cls)
        edit.directions, edit.table = directions, table
        edit._elsewhere, edit._last = {}, None
        return edit

    @property
    def rows(self) -> int:
        return self.table.rows

    def fits(self, hidden: Tensor) -> bool:
        """Whether the kernels can do this to `hidden`."""
        return (
            type(hidden) is Tensor
            and hidden.dtype in checks.DTYPES
            and hidden.ndim >= 2
            and hidden.shape[-1] == self.directions.shape[1]
            and (self.rows == 1 or self.rows == hidden.shape[0])
        )

    def __call__(self, hidden: Tensor, token_row: Tensor | None = None, *, in_place: bool) -> Tensor:
        """Steer `hidden` `[B, T, D]`: the same tensor, changed, or a new one where a gradient is wanted."""
        here = self if self.directions.device == hidden.device else self._on(hidden.device)
        if in_place and hidden.stride(-1) == 1 and not (hidden.requires_grad and torch.is_grad_enabled()):
            ops.steer_(hidden, here.directions, here.table, token_row)
            if token_row is None and here is self:
                self._last = _checked(self.directions)
            return hidden
        return ops.steer(hidden.contiguous(), here.directions, here.table, token_row)

    def again(self, hidden: Tensor) -> bool:
        """Steer dense rows in place if the last ones were just like them; False where that is not so.

        Behind a model's weights, which push everything else out of the caches, each check of a decoding
        step costs as much as the arithmetic. The directions and the table are nobody else's, so it is
        enough to look at `hidden`.
        """
        last = self._last
        if (
            last is not None
            and hidden.__class__ is Tensor
            and hidden.shape == last[0]
            and hidden.dtype is last[1]
            and hidden.is_cpu
            and hidden.is_contiguous()
            and not hidden.requires_grad
            and asked_here() is None
        ):
            cpu._cpu.steer_rows(last[2], hidden.data_ptr(), *last[3], self.table._handle, 0, 1.0)
            return True
        return False

    def _on(self, device: torch.device) -> Edit:
        found = self._elsewhere.get(device)
        if found is None:
            found = self._elsewhere[device] = Edit.of(self.directions.to(device), self.table.to(device))
        return found


def _checked(directions: Tensor) -> tuple | None:
    """What `ops.steer_` noted about the dense rows that passed its checks on the CPU: shape, dtype, sizes."""
    call = getattr(directions, "_emosteer_call", None)
    if call is None:
        return None
    shape, dtype, (code, *sizes) = call[2:]
    return shape, dtype, code, tuple(sizes)


def finite(vectors: Tensor) -> bool:
    """Whether a vector is one that the kernels define something for."""
    return bool(torch.isfinite(vectors).all())


def watched(module: nn.Module, own_hooks: int = 0) -> bool:
    """Whether somebody else looks at a module's output: that is to stay unsteered then, as without us.

    transformers does to collect `hidden_states`, by replacing the module's `forward` or by a hook.
    """
    return "forward" in module.__dict__ or len(module._forward_hooks) > own_hooks
