"""The cases of `emosteer bench gpu`: each a set of functions that do the same, by whom; made when their turn comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emosteer import ops
from emosteer.ops import Moments, Site, SteerTable, backends

from . import baselines, peers

DIRECTIONS = 171
TOKENS = (1, 32, 256, 4096, 65536)
WIDTHS = (4096, 2048, 8192)


@dataclass
class Case:
    """Functions by who made them; `moved` bytes at least, for the share of the copy bandwidth reached.

    A side may also be a context manager that gives the function, for what must be set up and undone.

    Attributes:
        tolerance: the sides' results are compared first, relative to their norm; None where there is nothing to
            compare, as for those named in `unlike`, which do something else of the same size.
        reset: gives each side of an operation in place the same input.
        op: what `predicted.work` calls it, None for what it does not count; with `shape` (tokens, D, item size).
    """

    name: str
    sides: dict[str, Callable[[], Any]]
    moved: float
    tolerance: float | None = None
    reset: Callable[[], Any] | None = None
    op: str | None = None
    shape: tuple[int, int, int] = (0, 0, 0)
    unlike: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A case that is not made yet: its name and the bytes of device memory that it will take."""

    name: str
    bytes: float
    make: Callable[[], Case]


def operation_plans(device: torch.device, *, small: bool) -> Iterator[Plan]:
    """Every operation at every size, those of decoding first; `small` for the interpreter."""
    for dim in (64,) if small else WIDTHS:
        for tokens in (1, 6) if small else TOKENS:
            dtypes = (torch.bfloat16, torch.float32) if small or dim == 4096 else (torch.bfloat16,)
            for dtype in dtypes:
                for make in _OPERATIONS:
                    setting = _Setting(device, tokens, dim, dtype, small)
                    yield Plan(f"{make.__name__[1:]} {setting.label}", setting.bytes, partial(make, setting))


@dataclass(frozen=True)
class _Setting:
    device: torch.device
    tokens: int
    dim: int
    dtype: torch.dtype
    small: bool

    @property
    def label(self) -> str:
        return f"{self.tokens}×{self.dim} {str(self.dtype).removeprefix('torch.')}"

    @property
    def item(self) -> int:
        return self.dtype.itemsize

    @property
    def bytes(self) -> float:
        """The rows, their copies, and what a baseline in float32 makes of them."""
        return self.tokens * self.dim * (4 * self.item + 5 * 4) + 4.0 * DIRECTIONS * (
            2 * self.dim + 3 * self.tokens
        )

    def tensors(self) -> _Tensors:
        return _Tensors(self)


class _Tensors:
    """Rows, a norm's weight, a bank, a program for each of up to 256 rows."""

    def __init__(self, of: _Setting) -> None:
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(*shape, generator=generator).to(of.device)  # noqa: E731
        k = 5 if of.small else DIRECTIONS
        self.x, self.weight = draw(of.tokens, of.dim).to(of.dtype), draw(of.dim).to(of.dtype)
        self.directions = torch.nn.functional.normalize(draw(k, of.dim), dim=1)
        self.programs = min(of.tokens, 256)
        self.table = SteerTable.empty(self.programs, device=of.device)
        self.table.direction[:, 0] = torch.arange(self.programs, device=of.device) % k
        self.table.strength.fill_(0.5)
        self.table.preserve_norm.fill_(1)
        self.row = torch.arange(of.tokens, device=of.device) // (of.tokens // self.programs)
        self.source = self.x.clone()

    def reset(self) -> Tensor:
        return self.x.copy_(self.source)


def _case(
    op: str,
    of: _Setting,
    t: _Tensors,
    run: Callable[[], Any],
    plain: Callable[[], Any],
    moved: float,
    tolerance: float,
    others: dict[str, Callable[[], Any]] | None = None,
) -> Case:
    ours = {name: partial(_with, name, run) for name in able(of.device)}
    unlike = others or {}
    sides = {
        **ours,
        **unlike,
        **_copy(t.x, moved),
        "eager torch": plain,
        "torch.compile": peers.compiled(plain, of.small),
    }
    shape = (of.tokens, of.dim, of.item)
    return Case(
        f"{op} {of.label}", sides, moved, tolerance, t.reset, op, shape, (*unlike, "copy of the bytes")
    )


def _copy(like: Tensor, moved: float) -> dict[str, Callable[[], Any]]:
    """A copy that reads and writes as many bytes as the operation has to."""
    size = max(int(moved // 2), 16)
    source, target = (torch.empty(size, dtype=torch.uint8, device=like.device) for _ in range(2))
    return {"copy of the bytes": lambda: target.copy_(source)}


def _steer_(of: _Setting) -> Case:
    t = of.tensors()
    return _case(
        "steer_",
        of,
        t,
        lambda: ops.steer_(t.x, t.directions, t.table),
        lambda: baselines.steer_(t.x, t.directions, t.table, t.row),
        2 * t.x.nbytes,
        4 * torch.finfo(of.dtype).eps,
        {"plain hook": lambda: baselines.plain_hook(t.x, t.directions, t.row)},
    )


def _rms_norm(of: _Setting) -> Case:
    t = of.tensors()
    return _case(
        "rms_norm",
        of,
        t,
        lambda: ops.rms_norm(t.x, t.weight),
        lambda: baselines.rms_norm(t.x, t.weight),
        2 * t.x.nbytes,
        4 * torch.finfo(of.dtype).eps,
        {"F.rms_norm": lambda: torch.nn.functional.rms_norm(t.x, (of.dim,), t.weight, 1e-6)},
    )


def _steer_rms_norm_(of: _Setting) -> Case:
    t = of.tensors()
    site = Site(t.weight, t.directions, t.table)
    return _case(
        "steer_rms_norm_",
        of,
        t,
        lambda: site(t.x),
        lambda: baselines.steer_rms_norm_(t.x, t.weight, t.directions, t.table, t.row),
        3 * t.x.nbytes,
        8 * torch.finfo(of.dtype).eps,
        peers.vllm_add_and_norm(t.x, t.weight),
    )


def _project(of: _Setting) -> Case:
    t = of.tensors()
    return _case(
        "project",
        of,
        t,
        lambda: ops.project(t.x, t.directions),
        lambda: baselines.project(t.x, t.directions),
        of.tokens * (of.dim * of.item + 4 * len(t.directions)),
        1e-4,
        peers.products(t.x, t.directions),
    )


def _project_extremes_(of: _Setting) -> Case:
    t = of.tensors()
    maximum, total = (torch.zeros(t.programs, len(t.directions), device=of.device) for _ in range(2))

    def extremes() -> Tensor:
        maximum.fill_(-torch.inf)
        total.zero_()
        ops.project_extremes_(maximum, total, t.x, t.directions)
        return maximum

    return _case(
        "project_extremes_",
        of,
        t,
        extremes,
        lambda: baselines.project_extremes(t.x, t.directions, t.row, t.programs)[0],
        t.x.nbytes,
        1e-4,
    )


_OPERATIONS = (_steer_, _rms_norm, _steer_rms_norm_, _project, _project_extremes_)


def covariance_plans(device: torch.device, *, small: bool) -> Iterator[Plan]:
    """A streaming update of moments, the second moment by cuBLAS and by the triangular kernel, against torch.cov."""
    for dim in (32,) if small else (1024, 2048, 4096, 8192):
        taken = 4.0 * dim * dim * (2 + 4 + 3 * 4) + 4.0 * dim * dim * 3
        yield Plan(f"covariance {4 * dim}×{dim} bfloat16", taken, partial(_covariance, device, dim))


def _covariance(device: torch.device, dim: int) -> Case:
    from emosteer.ops import triton

    x = torch.randn(4 * dim, dim, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)

    def streamed(width: float) -> Tensor:
        before, triton.triangle_from = triton.triangle_from, lambda capability: width
        try:
            with ops.backend("triton"):
                moments = Moments(1, dim, device=device)
                ops.moments_update_(moments, x)
        finally:
            triton.triangle_from = before
        assert moments.scatter is not None
        return moments.scatter / (len(x) - 1)

    sides: dict[str, Callable[[], Any]] = {}
    if "triton" in able(device):
        sides["triton, blocks by a library"] = partial(streamed, float("inf"))
        sides["triton, triangle"] = partial(streamed, 0)
    sides["torch.cov"] = lambda: baselines.covariance(x).tril()
    moved = x.numel() * x.element_size() + 4 * dim * dim
    return Case(f"covariance {4 * dim}×{dim} bfloat16", sides, moved, 1e-2)


def able(device: torch.device) -> list[str]:
    """The GPU backends that take tensors of `device`: on a CPU the interpreter of one."""
    names = [name for name in ("cuda", "triton") if backends.unavailable(name) is None]
    if device.type == "cuda":
        return names
    from emosteer.ops import cuda

    on_host = cuda._cuda is not None and cuda._cuda.device_type == "cpu"  # as the tests build it
    return [name for name in names if name == "triton" or on_host]


def _with(name: str, run: Callable[[], Any]) -> Any:
    with ops.backend(name):
        return run()


def entered(side: Any) -> Any:
    """A side as a context manager that gives its function."""
    return side if hasattr(side, "__enter__") else nullcontext(side)
