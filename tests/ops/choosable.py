"""Calls of every kind through the Triton backend, launching nothing: which variants of the kernels do they reach?

Prints the number of calls, what they reach beyond `survey.every`, and what of that they do not reach. A
process of its own, started by test_triton_machine_code: where kernels are interpreted there are no variants.
"""

import json
import random
from functools import partial

import numpy as np
import torch

from emosteer.kernels import launches
from emosteer.kernels.offline import variant
from emosteer.kernels.survey import every
from emosteer.kernels.variants import DTYPES, of
from emosteer.ops import Moments, SteerTable, triton
from emosteer.vllm import operator, read_operator

TARGET = "sm_90"
# Calls that are made; more as long as some variant was not reached, up to the second number.
CALLS, MOST = 5000, 20_000
OPS = ("steer", "steer_", "rms_norm", "project", "extremes", "moments", "stream", *["steer_rms_norm"] * 4)
WIDTHS = (1, 8, 12, 16, 17, 64, 576, 1000, 1024, 1025, 2000, 2048, 4095, 4096, 5120, 8191, 8192, 8208, 16384)


def rows(choose: random.Random, n: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    """`[n, dim]` or `[a, b, dim]`: contiguous, cut out of longer rows, moved by an element, or transposed."""
    kind = choose.randrange(8)
    if kind == 0:
        return torch.empty(n, dim + choose.choice((1, 16)), dtype=dtype)[:, :dim]
    if kind == 1:
        return torch.empty(n * dim + 1, dtype=dtype)[1:].view(n, dim)
    if kind == 2:
        return torch.empty(2, n, dim, dtype=dtype).transpose(0, 1)
    if kind == 3:
        return torch.empty(2, 3, n, dim, dtype=dtype).permute(1, 0, 2, 3)[:, :, ::2]  # three strides: copied
    return torch.empty(n, dim, dtype=dtype)


def call(choose: random.Random) -> str:
    """One call with arguments at random; says which."""
    dim = choose.choice(WIDTHS) if choose.random() < 0.7 else choose.randrange(1, 20000)
    dtype, n, slots = choose.choice(DTYPES), choose.choice((1, 2, 7)), choose.randrange(1, 65)
    slots = choose.choice((1, 4, slots))
    cut = choose.randrange(8) == 0  # a bank whose first direction is not aligned
    directions = torch.empty(3 * dim + cut)[cut:].view(3, dim)
    op = choose.choice(OPS)
    if op in ("project", "extremes", "moments"):
        n = choose.choice((1, 16, 70))
    x = rows(choose, n, dim, dtype)
    count = x.numel() // dim
    token_row = choose.choice((None, torch.zeros(count, dtype=torch.int32)))
    table = SteerTable.empty(choose.choice((1, count)), slots)
    weight = torch.empty(dim + cut, dtype=choose.choice(DTYPES))[cut:]
    center, cosine = choose.choice((None, torch.empty(dim))), choose.choice((False, True))
    if op == "steer":
        triton.steer(x, directions, table, token_row, 1.0)
    elif op == "steer_":
        triton.steer_(x, directions, table, token_row, 1.0)
    elif op == "steer_rms_norm":
        residual = choose.choice((None, torch.empty_like(x), torch.empty(*x.shape, dtype=dtype)))
        triton.steer_rms_norm_(x, weight, directions, table, token_row, 1.0, residual, 1e-6, 1.0)
    elif op == "rms_norm":
        triton.rms_norm(x, weight, 1e-6, 0.0)
    elif op == "project":
        triton.project(x, directions, center, cosine)
    elif op == "extremes":
        best = torch.empty(choose.choice((1, 2)), 3)
        triton.project_extremes_(best, best.clone(), x, directions, token_row, center, cosine)
    elif op == "stream":
        x = x.reshape(-1, dim)
        residual, place = choose.choice((None, torch.empty_like(x))), torch.zeros(3, dtype=torch.int32)
        row, words = torch.zeros(count, dtype=torch.int32), torch.zeros(2, 6 * slots + 2, dtype=torch.int32)
        operator.on_gpu(x, residual, directions, words, place, torch.ones(2), row, slots)
        read_operator.on_gpu(x, residual, directions, row, torch.empty(count, 3))
    else:
        dim_of_scatter = choose.choice((64, 100, 4096, 4100))
        x = rows(choose, choose.choice((1, 5)), dim_of_scatter, dtype)
        count = x.numel() // dim_of_scatter
        moments = _MOMENTS[dim_of_scatter, choose.choice((False, True))]
        group = choose.choice((None, torch.zeros(count, dtype=torch.int32)))
        triton.moments_update_(moments, x, group, choose.choice((None, torch.ones(count))))
    return f"{op} of {tuple(x.shape)} {dtype} strides {x.stride()} slots {slots} weight {weight.dtype}"


_MOMENTS = {
    (dim, scatter): Moments(2, dim, scatter=scatter)
    for dim in (64, 100, 4096, 4100)
    for scatter in (False, True)
}


def main() -> None:
    launched: list[launches.Launch] = []
    launches.Launch.run = lambda self: launched.append(self)
    operator._elsewhere = read_operator._elsewhere = lambda *_: None  # where no kernel is launched
    triton.triangle_from = lambda _capability: 4096  # as on a card where it is chosen
    found = {dtype: partial(of, getattr(torch, dtype)) for dtype in ("bfloat16", "float16", "float32")}
    listed = {
        variant(dict(found[pick.dtype](pick.dim))[pick.name], TARGET): str(pick) for pick in every(TARGET)
    }
    reached, unknown = set(), set()
    choose = random.Random(1)
    calls = 0
    while calls < CALLS or (calls < MOST and not listed.keys() <= reached):
        calls += 1
        what = call(choose)
        for launch in launched:
            reached.add(key := variant(launch, TARGET))
            if key not in listed:
                unknown.add(f"{what}: {launch.kernel} {launch.constants}")
        launched.clear()
    far = torch.from_numpy(np.zeros(2**31 + 64, dtype=np.uint16)).view(torch.bfloat16)
    triton.rms_norm(far.as_strided((3, 64), (2**30, 1)), torch.empty(64), 1e-6, 0.0)  # strides beyond 32 bits
    unknown |= {f"far rows: {launch.kernel}" for launch in launched if variant(launch, TARGET) not in listed}
    never = sorted({name for key, name in listed.items() if key not in reached})
    print(json.dumps({"calls": calls, "listed": len(listed), "unknown": sorted(unknown), "never": never}))


if __name__ == "__main__":
    main()
