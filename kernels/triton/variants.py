"""Every variant of a Triton kernel that a call can reach, as launches on tensors without memory.

What makes a variant: the dtype of the rows (and of a norm's weight, theirs or float32), the block that
holds a row, the bound on slots, whether everything is aligned, and the few flags that change what a
kernel keeps in registers. Residuals, centres, `token_row` and whether rows are steered in place are
asked when a kernel runs; strides, counts and numbers never make a variant.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from types import SimpleNamespace

import torch

from . import launches, read_stream, stream
from .launches import Launch, Rows
from .launches.steering import SLOTS

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Widths of models from 135M to 405B parameters, one for each block; above 8192 rows come in blocks.
WIDTHS = (576, 2048, 4096, 8192, 16384)
# A width whose rows are not aligned; those come in blocks too, whatever the width.
UNALIGNED = 4095
DIRECTIONS = 171


def every() -> Iterator[tuple[str, torch.dtype, int]]:
    """`(name, dtype, width)` of each variant, once."""
    seen = set()
    for dtype, dim in product(DTYPES, (*WIDTHS, UNALIGNED)):
        for name, launch in of(dtype, dim):
            key = name, dtype, launch.kernel, launch.warps, *launch.constants.items()
            if key not in seen:
                seen.add(key)
                yield name, dtype, dim


def of(dtype: torch.dtype, dim: int, n: int = 256) -> Iterator[tuple[str, Launch]]:
    """The launches for one dtype and width; those with a weight in float32 need another dtype of the rows."""
    make = partial(torch.empty, device="meta")
    x, out = make(n, dim, dtype=dtype), make(n, dim, dtype=dtype)
    directions, rows = make(DIRECTIONS, dim), Rows.dense(x)
    weights = {"": make(dim, dtype=dtype), ", float32 weight": make(dim)}
    if dtype == torch.float32:
        del weights[", float32 weight"]
    for slots in SLOTS:
        table, tail = _table(8, slots), f"{slots} slot{'s' * (slots > 1)}"
        yield f"steer ({tail})", launches.steer(x, rows, None, directions, table, None, 1.0)
        for of_weight, weight in weights.items():
            arguments = x, rows, None, rows, out, weight, directions, table, None, 1.0, 1e-6, 0.0
            yield f"steer_rms_norm ({tail}{of_weight})", launches.steer_rms_norm(*arguments)
    for of_weight, weight in weights.items():
        name = f"rms_norm ({of_weight[2:]})" if of_weight else "rms_norm"
        yield name, launches.rms_norm(x, rows, out, weight, 1e-6, 0.0)
    yield from _projections(dtype, dim)
    yield from _moments(x, rows)
    yield from _streams(x)


def _projections(dtype: torch.dtype, dim: int) -> Iterator[tuple[str, Launch]]:
    make = partial(torch.empty, device="meta")
    directions, best = make(DIRECTIONS, dim), make(8, DIRECTIONS)
    many, few, parts = make(4096, dim, dtype=dtype), make(16, dim, dtype=dtype), make(16, 16, DIRECTIONS)
    yield "project_parts", launches.project_parts(few, Rows.dense(few), directions, None, parts)
    for cosine in (False, True):
        tail = ", cosine" * cosine
        scores, rows = make(4096, DIRECTIONS), Rows.dense(many)
        yield f"project (many{tail})", launches.project(many, rows, directions, None, cosine, scores)
        arguments = many, rows, directions, None, cosine, best, best, None
        yield f"project_extremes (many{tail})", launches.project_extremes(*arguments)
        of_few = few, Rows.dense(few), None, cosine, parts
        yield f"combine_parts (scores{tail})", launches.combine_parts(*of_few, make(16, DIRECTIONS))
        yield f"combine_parts (extremes{tail})", launches.combine_parts(*of_few, None, best, best)


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


def _streams(hidden: torch.Tensor) -> Iterator[tuple[str, Launch]]:
    """Of vLLM's stream in two parts, for rows that fit the registers."""
    make = partial(torch.empty, device="meta")
    n, dim = hidden.shape
    directions, of_token = make(DIRECTIONS, dim), make(n, dtype=torch.int32)
    for slots in SLOTS:
        words = make(8, 6 * slots + 2, dtype=torch.int32)
        numbers, flags = words.view(torch.float32), make(8, 4 * words.shape[1], dtype=torch.uint8)
        where = make(3, dtype=torch.int32), make(8), of_token
        launch = stream.launch(hidden, hidden, directions, words, numbers, flags, *where, slots)
        if launch is not None:
            yield f"steer_stream ({slots} slot{'s' * (slots > 1)})", launch
    launch = read_stream.launch(hidden, hidden, directions, of_token, make(n, DIRECTIONS))
    if launch is not None:
        yield "read_stream", launch


def _table(programs: int, slots: int) -> SimpleNamespace:
    make = partial(torch.empty, device="meta")
    slotted = {name: make(programs, slots) for name in ("strength", "low", "high", "rotate")}
    flags = {name: make(programs, dtype=torch.uint8) for name in ("preserve_norm", "relative")}
    direction = make(programs, slots, dtype=torch.int32)
    return SimpleNamespace(
        rows=programs, slots=slots, strides=(slots, 1), direction=direction, **slotted, **flags
    )
