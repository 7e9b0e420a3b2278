"""Calls of every CUDA kernel on guarded memory: what a planted bug must fail and a sanitizer must see in silence.

Run as a program, it takes the path of a module and says which bits came out:
`python -m tests.ops.host.checks MODULE.so`. HOST_ORDER chooses the order of the threads (`fibers.hpp`).
"""

import hashlib
import sys

import numpy as np
import torch

from emosteer import ops
from emosteer.ops import SteerTable

from .. import oracle
from ..cases import adding, rows, unit

GUARD = 77.0
# Every bit that the kernels gave.
SEEN = hashlib.sha256()


def guarded(n, dim, dtype, gap, seed=1):
    """Rows with `gap` columns after each and a row after the last, all of which must stay as they are."""
    whole = torch.full((n + 1, dim + gap), GUARD, dtype=dtype)
    whole[:n, :dim] = rows(n, dim, dtype, seed)
    return whole, whole[:n, :dim]


def assert_untouched(whole, n, dim):
    assert (whole[n] == GUARD).all(), "wrote below the last row"
    assert (whole[:, dim:] == GUARD).all(), "wrote beyond a row"


def several(k, preserve, programs=3):
    """Two programs of three slots and an idle one: strengths, a cap, a rotation."""
    table = SteerTable.empty(programs, 3)
    for r in range(programs - 1):
        table.direction[r] = (torch.arange(3) + r) % k
        table.strength[r] = torch.tensor([0.5, -0.25, 0.0])
        table.high[r, 1] = 0.1
        table.rotate[r, 2] = 0.4
        table.relative[r] = r % 2
    table.preserve_norm.fill_(preserve)
    return table


def note(*outputs):
    for output in outputs:
        SEEN.update(output.contiguous().view(torch.uint8).numpy())


def steer(n, dim, dtype, gap, preserve):
    directions = torch.linalg.qr(unit(max(dim, 4), dim).T.double()).Q.T[:4].float().contiguous()
    for table in (adding(3, len(directions), preserve=preserve), several(len(directions), preserve)):
        whole, x = guarded(n, dim, dtype, gap)
        token_row = torch.tensor([0, 1, 2, -1, 1, 0, 2][:n], dtype=torch.int32)
        want = oracle.steered(x, directions, table, token_row)
        size = x.double().norm(dim=1).numpy() + np.linalg.norm(want, axis=1) + 8
        before = x.clone()
        ops.steer_(x, directions, table, token_row)
        assert_untouched(whole, n, dim)
        note(x)
        oracle.assert_rounded(x.contiguous(), want, size, slack=2e-5)
        assert torch.equal(ops.steer(before, directions, table, token_row), x)


def steer_rms_norm(n, dim, dtype, gap):
    directions, table, weight = unit(2, dim), adding(1, 2, preserve=2), rows(1, dim, dtype, seed=5)[0].clone()
    whole, x = guarded(n, dim, dtype, gap)
    residual = rows(n, dim, dtype, seed=9)
    want = oracle.steered(x.double() + residual.double(), directions, table)
    normed, _ = ops.steer_rms_norm_(x, weight, directions, table, residual=residual)
    oracle.assert_rounded(x.contiguous(), want, np.linalg.norm(want, axis=1) + 2, slack=2e-5)
    assert_untouched(whole, n, dim)
    note(x, normed)
    of_stream = oracle.normed(x, weight)
    oracle.assert_rounded(normed, of_stream, np.abs(of_stream).max(axis=1))
    assert torch.equal(ops.rms_norm(x, weight), normed)


def project(n, dim, dtype, gap):
    _, x = guarded(n, dim, dtype, gap)
    for k in (1, 6):
        directions, center = unit(k, dim), rows(1, dim, seed=3)[0].clone()
        for cosine in (False, True):
            out = ops.project(x, directions, center=center, cosine=cosine).double()
            note(out)
            wide = x.double() - center.double()
            want = wide @ directions.double().T
            reach = wide.norm(dim=1, keepdim=True) + center.norm()
            want, reach = (want / wide.norm(dim=1, keepdim=True), 1.0) if cosine else (want, reach)
            assert ((out - want).abs() <= 4e-6 * reach).all()


def indices_out_of_range():
    """Taken as empty: nothing outside is read (a sanitizer sees) and the rows stay as they are."""
    x, directions, table = rows(6, 40), unit(3, 40), adding(2, 3)
    before = x.clone()
    table.direction[1, 0] = 3
    token_row = torch.tensor([-1, 2, -2, 2**31 - 1, -(2**31), 1], dtype=torch.int32)
    ops.steer_(x, directions, table, token_row)
    assert torch.equal(x, before)
    for index in (-2, 10**6, 2**31 - 1, -(2**31)):
        table.direction.fill_(index)
        ops.steer_(x, directions, table)
    assert torch.equal(x, before)


def every_kernel(dims=(7, 40, 577), dtypes=(torch.float32, torch.bfloat16)):
    """Every kernel, rows aligned and not, with and without a tail; one warp a row and several."""
    indices_out_of_range()
    for dim in dims:
        for dtype in dtypes:
            for gap in (0, 8 + -dim % 8, 3):
                for preserve in (0, 1, 2):
                    steer(5, dim, dtype, gap, preserve)
                steer_rms_norm(5, dim, dtype, gap)
                project(5, dim, dtype, gap)


if __name__ == "__main__":
    from pathlib import Path

    from . import build, installed

    with installed(build.load(Path(sys.argv[1]))), ops.backend("cuda"):
        every_kernel()
        print("every kernel ran:", SEEN.hexdigest())
