"""Streaming class means and a pooled covariance, as tensors that a kernel updates in place."""

from __future__ import annotations

from torch import Tensor

from .moment_tensors import MomentTensors
from .public import moments_update_


class Moments(MomentTensors):
    """Counts, per-group sums and one pooled second moment of rows in `R^D`, about a fixed shift.

    With weights `w_n` (1 unless given), groups `g_n` and the shift `s` (the weighted mean of the
    first update, frozen from then on):

        count_c = Σ_{g_n=c} w_n     sum_c = Σ_{g_n=c} w_n (x_n − s)
        scatter = Σ_n w_n (x_n − s)(x_n − s)ᵀ          (lower triangle)

    Taking the moments about a pilot mean is what keeps fp32 accumulation exact to about 1e-6 where
    raw second moments lose 1e-3 on residual streams with outlier dimensions (Chan, Golub & LeVeque,
    1983). A token of group −1 counts nowhere.

    Args:
        n_groups: number of groups C.
        dim: width D.
        scatter: whether to keep the second moment (`D²` floats).
        device: where the tensors live.

    Attributes:
        count: float64 `[C]`.
        sum: float64 `[C, D]`, about the shift.
        shift: float64 `[D]`.
        started: bool `[]`, whether the shift has been set.
        scatter: float32 `[D, D]`, lower triangle; None where not kept.
    """

    def update(self, x: Tensor, token_group: Tensor | None = None, weight: Tensor | None = None) -> Moments:
        """Count rows `x` `[..., D]` in; see `emosteer.ops.moments_update_`."""
        return moments_update_(self, x, token_group, weight)
