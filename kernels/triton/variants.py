"""Every kind of call that reaches a Triton kernel, as launches on tensors without memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from . import launches
from .launches import Launch, Rows

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Widths of models from 135M to 405B parameters, one for each block; above 8192 rows come in blocks.
WIDTHS = (576, 2048, 4096, 8192, 16384)
# Tables of one slot, of as many as a steered model has by default, and of many.
SLOTS = (1, 4, 32)
DIRECTIONS = 171


def names(dim: int) -> list[str]:
    """The names of the variants for a width; those that do not depend on it stand with 4096 only."""
    return [name for name, _ in of(torch.bfloat16, dim) if dim == 4096 or name.startswith(("steer", "rms"))]


def of(dtype: torch.dtype, dim: int, n: int = 256) -> Iterator[tuple[str, Launch]]:
    """The launches for one dtype and width."""
    make = partial(torch.empty, device="meta")
    x, out = make(n, dim, dtype=dtype), make(n, dim, dtype=dtype)
    weight, directions = make(dim, dtype=dtype), make(DIRECTIONS, dim)
    token_row, rows = make(n, dtype=torch.int32), Rows.dense(x)
    for slots in SLOTS:
        columns = _table(8, slots)
        for dense in (True, False):
            token = None if dense else token_row
            tail = f"{slots} slot{'s' * (slots > 1)}, {'dense' if dense else 'token_row'}"
            yield f"steer_ ({tail})", launches.steer(x, rows, None, directions, columns, token, 1.0)
            yield f"steer ({tail})", launches.steer(x, rows, out, directions, columns, token, 1.0)
            for residual in (None, x):
                yield (
                    f"steer_rms_norm_ ({tail}{', residual' if residual is not None else ''})",
                    launches.steer_rms_norm(
                        x, rows, residual, rows, out, weight, directions, columns, token, 1.0, 1e-6, 0.0
                    ),
                )
    yield "rms_norm", launches.rms_norm(x, rows, out, weight, 1e-6, 0.0)
    yield from _projections(dtype, dim)
    yield from _moments(x, rows)


def _projections(dtype: torch.dtype, dim: int) -> Iterator[tuple[str, Launch]]:
    make = partial(torch.empty, device="meta")
    directions, center = make(DIRECTIONS, dim), make(dim)
    for size, n in (("few", 16), ("many", 4096)):
        x = make(n, dim, dtype=dtype)
        rows, scores = Rows.dense(x), make(n, DIRECTIONS)
        best, total = make(8, DIRECTIONS), make(8, DIRECTIONS)
        for middle, cosine in ((None, False), (center, False), (None, True), (center, True)):
            tail = size + ", center" * (middle is not None) + ", cosine" * cosine
            yield f"project ({tail})", launches.project(x, rows, directions, middle, cosine, scores)
            for dense in (True, False):
                token = None if dense else make(n, dtype=torch.int32)
                yield (
                    f"project_extremes_ ({tail}, {'dense' if dense else 'token_row'})",
                    launches.project_extremes(x, rows, directions, middle, cosine, best, total, token),
                )


def _moments(x: torch.Tensor, rows: Rows) -> Iterator[tuple[str, Launch]]:
    make = partial(torch.empty, device="meta")
    n, dim = x.shape
    weight, group = make(n), make(n, dtype=torch.int32)
    total, shift = make(8, dim, dtype=torch.float64), make(dim, dtype=torch.float64)
    started, centred = make((), dtype=torch.bool), make(n, dim)
    yield "moments (pilot)", launches.group_sums(x, rows, None, weight, total, started=started)
    for grouped in (None, group):
        tail = "grouped" if grouped is not None else "one group"
        yield f"moments (sums, {tail})", launches.group_sums(x, rows, grouped, weight, total, shift=shift)
        yield (
            f"moments (sums and centred rows, {tail})",
            launches.group_sums(x, rows, grouped, weight, total, shift=shift, centred=centred),
        )
    yield "moments (triangle)", launches.scatter(x, rows, weight, shift, make(dim, dim))


def _table(programs: int, slots: int) -> tuple[torch.Tensor, ...]:
    make = partial(torch.empty, device="meta")
    shape = (programs, slots)
    return (
        make(shape, dtype=torch.int32),
        *(make(shape) for _ in range(4)),
        *(make(programs, dtype=torch.uint8) for _ in range(2)),
    )
