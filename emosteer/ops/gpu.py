"""Which backend runs an operation on a GPU: the rule, in one place, and the operations by it.

The rule follows from two costs. A launch of the compiled CUDA kernels costs a few microseconds of the
caller's time and Triton's a few times that, since its launcher is Python: what is over sooner than
that belongs to CUDA. What takes longer hides the launch, and there Triton's kernels move the same bytes,
take rows of any width, run on AMD as well, and bring tensor cores to projections. *Predicted* from bytes
and published bandwidths (`emosteer bench static`); `emosteer bench gpu` measures both sides.

- steer, steer_rms_norm, rms_norm: cuda up to 16M elements, since moving their 64 MB takes as long as
  a launch of Triton's; beyond that, and beyond 8192 columns or 32 slots, triton.
- project: cuda up to 4096 pairs of a row and a direction, each of which reads the direction; beyond
  that triton, whose tiles share what they read.
- project_extremes: triton, where the scores are never written; without it cuda's scores, folded by torch.
- moments: triton; the second moment by cuBLAS in blocks, and by the triangular kernel (half the products,
  on tensor cores) where counted work makes that twice as fast: `triton.triangle_from`.
- without Triton: cuda for whatever it takes, plain torch (cuBLAS) for the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import backends, cuda, sites
from .extremes import fold_
from .moment_tensors import MomentTensors
from .sites import Bound, BoundNorm, BoundSteer, NormSite, Site, SteerSite
from .table import SteerTable

# Elements that move in the time of one launch of Triton's: 64 MiB of reads and writes in bfloat16.
LAUNCH_BOUND_ELEMENTS = 1 << 24
# Products of one row with one direction that do.
LAUNCH_BOUND_PAIRS = 4096


def choose(op: str, rows: int, dim: int, *, slots: int = 1, directions: int = 1) -> str:
    """The name of the backend that runs `op` on `rows` rows of `dim` columns; pure arithmetic, no device.

    Args:
        op: steer, steer_rms_norm, rms_norm, project, project_extremes or moments.
        rows, dim: of `x`.
        slots: of the table (steering).
        directions: of the bank (projections).
    """
    has = {name: backends.unavailable(name) is None for name in ("cuda", "triton")}
    compiled = has["cuda"] and op != "moments" and not (op == "project_extremes" and has["triton"])
    if compiled and cuda.limit(rows, dim, slots=slots, directions=directions) is None:
        small = rows * dim <= LAUNCH_BOUND_ELEMENTS
        if op == "project":  # and extremes, which come here without Triton only
            small = rows * directions <= LAUNCH_BOUND_PAIRS
        if small or not has["triton"]:
            return "cuda"
    return "triton" if has["triton"] else "reference"


def steer_(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> None:
    _for("steer", x, slots=table.slots).steer_(x, directions, table, token_row, scale)


def steer(x: Tensor, directions: Tensor, table: SteerTable, token_row: Tensor | None, scale: float) -> Tensor:
    return _for("steer", x, slots=table.slots).steer(x, directions, table, token_row, scale)


def rms_norm(x: Tensor, weight: Tensor, eps: float, weight_offset: float) -> Tensor:
    return _for("rms_norm", x).rms_norm(x, weight, eps, weight_offset)


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
    run = _for("steer_rms_norm", x, slots=table.slots)
    return run.steer_rms_norm_(x, weight, directions, table, token_row, scale, residual, eps, weight_offset)


def bind(site: Site, dtype: torch.dtype) -> Bound:
    """The backends' own, each for the sizes that are its."""
    made = partial(sites.bind, site=site, dtype=dtype)
    return _by_size("steer_rms_norm", made, site.directions.shape[1], slots=site.table.slots)


def bind_steer(site: SteerSite, dtype: torch.dtype) -> BoundSteer:
    """As `bind`."""
    made = partial(sites.bind_steer, site=site, dtype=dtype)
    return _by_size("steer", made, site.directions.shape[1], slots=site.table.slots)


def bind_norm(site: NormSite, dtype: torch.dtype) -> BoundNorm:
    """As `bind`."""
    return _by_size("rms_norm", partial(sites.bind_norm, site=site, dtype=dtype), len(site.weight))


def _by_size(op: str, made: Callable[..., Any], dim: int, *, slots: int = 1) -> Callable[..., Any]:
    """What is `made` of the backends that run `op` on few and on many elements; one of the two where they are one."""
    name = choose(op, 1, dim, slots=slots)
    few = made(import_module(f"emosteer.ops.{name}"))
    if name != "cuda" or choose(op, LAUNCH_BOUND_ELEMENTS, dim, slots=slots) == "cuda":
        return few
    many = made(import_module("emosteer.ops.triton"))

    def bound(x: Tensor, *token_row: Tensor | None) -> Any:
        return (few if x.numel() <= LAUNCH_BOUND_ELEMENTS else many)(x, *token_row)

    return bound


def project(x: Tensor, directions: Tensor, center: Tensor | None, cosine: bool) -> Tensor:
    run = _for("project", x, directions=directions.shape[0])
    return run.project(x, directions, center, cosine)


def project_extremes_(maximum: Tensor, total: Tensor, x: Tensor, directions: Tensor, *rest) -> None:
    fold_(_for("project_extremes", x, directions=directions.shape[0]), maximum, total, x, directions, *rest)


def moments_update_(
    moments: MomentTensors, x: Tensor, token_group: Tensor | None, weight: Tensor | None
) -> None:
    _for("moments", x).moments_update_(moments, x, token_group, weight)


_MODULES: dict[str, ModuleType] = {}


def _for(op: str, x: Tensor, *, slots: int = 1, directions: int = 1) -> ModuleType:
    dim = x.shape[-1]
    name = choose(op, x.numel() // dim, dim, slots=slots, directions=directions)
    return _MODULES.get(name) or _MODULES.setdefault(name, import_module(f"emosteer.ops.{name}"))
