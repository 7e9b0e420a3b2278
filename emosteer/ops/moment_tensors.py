"""The tensors of streaming moments: where they lie, what they add up to, how two of them become one."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

# A row of this many float32 is a whole number of pages: the rows of a block then compete for the same
# lines of a cache, which costs a product of narrow blocks some percent.
_PAGE = 1024
_APART = 16

_Some = TypeVar("_Some", bound="MomentTensors")
_STATE = ("count", "sum", "shift", "started", "scatter")


class MomentTensors:
    """The state of `Moments`, which says what each tensor is; what backends fill.

    Attributes:
        count, sum, shift, started, scatter: as in `Moments`.
    """

    # Room for the rows of an update about the shift; the CPU backend's own.
    centred: Tensor | None = None

    def __init__(
        self, n_groups: int, dim: int, scatter: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        for name, value in (("n_groups", n_groups), ("dim", dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
        self.count = torch.zeros(n_groups, dtype=torch.float64, device=device)
        self.sum = torch.zeros(n_groups, dim, dtype=torch.float64, device=device)
        self.shift = torch.zeros(dim, dtype=torch.float64, device=device)
        self.started = torch.zeros((), dtype=torch.bool, device=device)
        self.scatter = rows_apart(dim, dim, device).zero_() if scatter else None

    @property
    def n_groups(self) -> int:
        return self.sum.shape[0]

    @property
    def dim(self) -> int:
        return self.sum.shape[1]

    @property
    def device(self) -> torch.device:
        return self.sum.device

    def merge(self: _Some, other: MomentTensors) -> _Some:
        """Add what another shard or rank has counted, exactly, whatever its shift; in place.

        With `d = s_other − s` and the other's `n = Σ count`, `S = Σ sum`:

            sum_c   += sum'_c + count'_c d
            scatter += scatter' + S dᵀ + d Sᵀ + n d dᵀ
        """
        if (other.n_groups, other.dim) != (self.n_groups, self.dim):
            raise ValueError(
                f"other counts {other.n_groups} groups of width {other.dim}, this counts {self.n_groups} of {self.dim}"
            )
        if (other.scatter is None) != (self.scatter is None):
            raise ValueError("one of the two keeps a second moment and the other does not")
        if not other.started:
            return self
        if not self.started:
            self.load_state_dict(other.state_dict())
            return self
        device = self.device
        d = other.shift.to(device) - self.shift
        count, total = other.count.to(device), other.sum.to(device)
        self.count += count
        self.sum += total + count[:, None] * d
        if self.scatter is not None and other.scatter is not None:
            cross = torch.outer(total.sum(0), d)
            change = other.scatter.to(device).double() + cross + cross.T + count.sum() * torch.outer(d, d)
            self.scatter.copy_((self.scatter.double() + change).tril_())
        return self

    def mean(self) -> Tensor:
        """float64 `[C, D]`: the mean of each group; NaN for a group that counted nothing."""
        return self.shift + self.sum / self.count[:, None]

    def total_mean(self) -> Tensor:
        """float64 `[D]`: the mean of everything counted."""
        return self.shift + self.sum.sum(0) / self.count.sum()

    def covariance(self, kind: str = "total", *, correction: float = 1.0) -> Tensor:
        """float64 `[D, D]`: the covariance of all rows about their mean, or about their group's mean.

            total:  (scatter − S Sᵀ/n) / (n − correction)
            within: (scatter − Σ_c sum_c sum_cᵀ/count_c) / (n − correction·groups seen)

        Args:
            kind: "total" or "within".
            correction: 1 for the unbiased estimate (as `torch.cov`), 0 for the maximum-likelihood one.

        Raises:
            ValueError: no second moment was kept, an unknown kind, or too few rows were counted.
        """
        if self.scatter is None:
            raise ValueError("these moments keep no second moment; make them with scatter=True")
        if kind not in ("total", "within"):
            raise ValueError(f'kind must be "total" or "within", got {kind!r}')
        seen = self.count > 0
        n = float(self.count.sum())
        left = n - correction * (1 if kind == "total" else int(seen.sum()))
        if left <= 0:
            raise ValueError(
                f"{n:g} rows counted are too few for the {kind} covariance with correction {correction:g}"
            )
        lower = self.scatter.double().tril()
        second = lower + lower.tril(-1).T
        if kind == "total":
            total = self.sum.sum(0)
            between = torch.outer(total, total) / n
        else:
            scaled = self.sum[seen] / self.count[seen].sqrt()[:, None]
            between = scaled.T @ scaled
        return (second - between) / left

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name, copied: what a checkpoint stores."""
        return {name: getattr(self, name).clone() for name in _STATE if getattr(self, name) is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a `state_dict` of the same shapes, keeping the addresses."""
        want = {name for name in _STATE if getattr(self, name) is not None}
        if set(state) != want:
            raise ValueError(f"state must hold {sorted(want)}, got {sorted(state)}")
        for name in want:
            mine = getattr(self, name)
            if state[name].shape != mine.shape:
                raise ValueError(
                    f"state[{name!r}] must have shape {list(mine.shape)}, got {list(state[name].shape)}"
                )
        for name in want:
            getattr(self, name).copy_(state[name])

    def __repr__(self) -> str:
        kept = "with" if self.scatter is not None else "without"
        return f"Moments(n_groups={self.n_groups}, dim={self.dim}, {kept} scatter, count={float(self.count.sum()):g})"


def rows_apart(n: int, dim: int, device: torch.device | str = "cpu") -> Tensor:
    """Room for float32 `[n, D]`; on a CPU the rows never start a whole number of pages apart."""
    on_cpu = torch.device(device).type == "cpu"
    apart = _APART if on_cpu and dim % _PAGE == 0 else 0
    return torch.empty(n, dim + apart, device=device)[:, :dim]
