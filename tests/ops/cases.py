"""Inputs drawn by hypothesis: rows of any shape, stride and dtype, tables of any content."""

import math

import torch
from hypothesis import strategies as st

from emosteer.ops import SteerTable

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 2, 7, 31, 48, 64, 576, 577)


def unit(k, dim, seed=0):
    """`[k, dim]` float32 directions of length 1."""
    rows = torch.randn(k, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1).float()


def rows(n, dim, dtype=torch.float32, seed=1, scale=1.0):
    return (torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def adding(programs=1, k=3, strength=0.5, preserve=1):
    """A table whose row r adds direction `r mod k`."""
    table = SteerTable.empty(programs)
    table.direction[:, 0] = torch.arange(programs) % k
    table.strength.fill_(strength)
    table.preserve_norm.fill_(preserve)
    return table


@st.composite
def strided(draw, count=None, dims=WIDTHS):
    """`[..., D]` rows: contiguous, sliced, every second, transposed in front, or a column window."""
    dim = draw(st.sampled_from(dims))
    shape = [count] if count else draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))
    scale = draw(st.sampled_from((1e-3, 1.0, 40.0)))
    make = lambda *s: (torch.randn(*s, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)  # noqa: E731
    form = draw(st.sampled_from(("contiguous", "window", "second", "transposed")))
    if form == "window":
        return make(*shape, dim + 5)[..., 2 : dim + 2]
    if form == "second":
        return make(2 * shape[0], *shape[1:], dim)[::2]
    if form == "transposed" and len(shape) > 1:
        return make(*reversed(shape), dim).permute(*reversed(range(len(shape))), len(shape))
    return make(*shape, dim)


@st.composite
def tables(draw, k, programs, slots=None, clamps=True):
    slots = slots or draw(st.integers(1, 8))
    table = SteerTable.empty(programs, slots)
    number = st.floats(-2, 2, width=32)
    for r in range(programs):
        table.preserve_norm[r] = draw(st.integers(0, 2))
        table.relative[r] = draw(st.integers(0, 1))
        used = draw(st.permutations(range(k)))[: draw(st.integers(0, min(slots, k)))]
        for s, direction in enumerate(used):
            table.direction[r, s] = direction
            kind = draw(st.sampled_from(("add", "cap", "floor", "hold", "rotate", "both")))
            if kind in ("add", "both"):
                table.strength[r, s] = draw(number)
            if kind in ("cap", "hold", "both") and clamps:
                table.high[r, s] = draw(number)
            if kind in ("floor", "hold", "both") and clamps:
                top = float(table.high[r, s])
                table.low[r, s] = top if math.isfinite(top) else draw(number)
            if kind == "rotate":
                table.rotate[r, s] = draw(st.floats(-3.125, 3.125, width=32))
    return table
