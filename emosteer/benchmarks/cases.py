"""The cases of `emosteer bench gpu`: each a set of functions that do the same, by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emosteer import ops
from emosteer.ops import Moments, SteerTable, backends

from . import baselines

DIRECTIONS = 171
TOKENS = (1, 32, 256, 4096, 65536)
WIDTHS = (2048, 4096, 8192)


@dataclass
class Case:
    """Functions by who made them; `moved` bytes at least, for the share of the copy bandwidth reached.

    With a `tolerance` the sides' results are compared first, relative to their norm; `reset` gives each
    side of an operation in place the same input.
    """

    name: str
    sides: dict[str, Callable[[], Any]]
    moved: float
    tolerance: float | None = None
    reset: Callable[[], Any] | None = None


def operation_cases(device: torch.device, *, small: bool) -> Iterator[Case]:
    """Every operation at every size; `small` for the interpreter."""
    for dim in (64,) if small else WIDTHS:
        for tokens in (1, 6) if small else TOKENS:
            dtypes = (torch.bfloat16, torch.float32) if small or dim == 4096 else (torch.bfloat16,)
            for dtype in dtypes:
                yield from _operations(device, tokens, dim, dtype, small)


def _operations(
    device: torch.device, tokens: int, dim: int, dtype: torch.dtype, small: bool
) -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)
    k = 5 if small else DIRECTIONS
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(device)  # noqa: E731
    x, weight = draw(tokens, dim).to(dtype), draw(dim).to(dtype)
    directions = torch.nn.functional.normalize(draw(k, dim), dim=1)
    programs = min(tokens, 256)
    table = SteerTable.empty(programs, device=device)
    table.direction[:, 0] = torch.arange(programs, device=device) % k
    table.strength.fill_(0.5)
    table.preserve_norm.fill_(1)
    row = torch.arange(tokens, device=device) // (tokens // programs)
    label = f"{tokens}×{dim} {str(dtype).removeprefix('torch.')}"
    item, compiled = x.element_size(), partial(torch.compile, backend="eager" if small else "inductor")

    def by_backend(run: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
        return {name: partial(_with, name, run) for name in _able(device)}

    source = x.clone()

    def case(name: str, run, plain: Callable[[], Any], moved: float, tolerance: float) -> Case:
        sides = {**by_backend(run), "eager torch": plain, "torch.compile": compiled(plain)}
        return Case(f"{name} {label}", sides, moved, tolerance, lambda: x.copy_(source))

    eps = torch.finfo(dtype).eps
    yield case(
        "steer_",
        lambda: ops.steer_(x, directions, table),
        lambda: baselines.steer_(x, directions, table, row),
        2 * tokens * dim * item,
        4 * eps,
    )
    yield case(
        "rms_norm",
        lambda: ops.rms_norm(x, weight),
        lambda: baselines.rms_norm(x, weight),
        2 * tokens * dim * item,
        4 * eps,
    )
    yield case(
        "steer_rms_norm_",
        lambda: ops.steer_rms_norm_(x, weight, directions, table)[0],
        lambda: baselines.steer_rms_norm_(x, weight, directions, table, row),
        3 * tokens * dim * item,
        8 * eps,
    )
    yield case(
        "project",
        lambda: ops.project(x, directions),
        lambda: baselines.project(x, directions),
        tokens * (dim * item + 4 * k),
        1e-4,
    )
    maximum, total = (torch.zeros(programs, k, device=device) for _ in range(2))

    def extremes() -> Tensor:
        maximum.fill_(-torch.inf)
        total.zero_()
        ops.project_extremes_(maximum, total, x, directions)
        return maximum

    yield case(
        "project_extremes_",
        extremes,
        lambda: baselines.project_extremes(x, directions, row, programs)[0],
        tokens * dim * item,
        1e-4,
    )
    other = torch.empty_like(x)
    yield Case(f"copy {label}", {"copy": lambda: other.copy_(x)}, 2 * tokens * dim * item)


def covariance_cases(device: torch.device, *, small: bool) -> Iterator[Case]:
    """A streaming update of moments against torch.cov of the same rows."""
    for dim in (32,) if small else (1024, 2048, 4096, 8192):
        x = torch.randn(4 * dim, dim, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)

        def streamed(x: Tensor = x, dim: int = dim) -> Tensor:
            moments = Moments(1, dim, device=device)
            ops.moments_update_(moments, x)
            return moments.scatter / (len(x) - 1) if moments.scatter is not None else x

        sides: dict[str, Callable[[], Any]] = {
            name: partial(_with, name, streamed) for name in _able(device) if name != "cuda"
        }
        sides["torch.cov"] = partial(_lower_covariance, x)
        moved = x.numel() * x.element_size() + 4 * dim * dim
        yield Case(f"covariance {4 * dim}×{dim} bfloat16", sides, moved, 1e-2)


def _lower_covariance(x: Tensor) -> Tensor:
    return baselines.covariance(x).tril()


def _able(device: torch.device) -> list[str]:
    """The GPU backends that take tensors of `device`: on a CPU the interpreter of one."""
    names = ["triton"] if device.type == "cpu" else ["cuda", "triton"]
    return [name for name in names if backends.unavailable(name) is None]


def _with(name: str, run: Callable[[], Any]) -> Any:
    with ops.backend(name):
        return run()
