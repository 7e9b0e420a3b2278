"""Every operation on the device against float64 on the CPU."""

import numpy as np
import pytest
import torch

from emosteer import ops
from emosteer.ops import Moments, SteerTable, triton
from tests.ops import oracle
from tests.ops.cases import DTYPES as EVERY
from tests.ops.cases import adding, rows, unit

from .stub import STUBBED

DTYPES = EVERY[1:2] if STUBBED else EVERY
WIDTHS = (64,) if STUBBED else (1, 64, 576, 577, 4096, 8192, 16384)


def everything(programs, k):
    """Programs that add, cap, hold and rotate, with each way of keeping the norm, and an idle one."""
    table = SteerTable.empty(programs, 3)
    for r in range(programs - 1):
        for s in range(r % 3 + 1):
            table.direction[r, s] = (r + s) % k
        table.preserve_norm[r] = r % 3
        table.relative[r] = r % 2
        table.strength[r, 0] = 0.3 * (r % 4)
        if r % 4 == 1:
            table.high[r, 0] = 0.1
        if r % 4 == 2:
            table.low[r, 0] = table.high[r, 0] = 0.2
        if r % 4 == 3:
            table.rotate[r, 0] = 0.4
    return table


def size_of(x, want):
    return np.maximum(x.double().reshape(len(want), -1).norm(dim=1).numpy(), np.linalg.norm(want, axis=1)) + 1


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dense", [False, True])
def test_steer(backend, device, dtype, dim, dense):
    k = min(dim, 9)
    x, table = rows(52, dim, dtype), everything(13, k)
    directions = torch.linalg.qr(unit(dim, k, seed=3).double()).Q.T.float().contiguous()
    token_row = None if dense else (torch.arange(52) * 5 % 15 - 1).clamp(max=12).int()
    want = oracle.steered(x, directions, table, token_row, 1.5)
    given = (directions.to(device), table.to(device), None if dense else token_row.to(device))
    on = x.to(device)
    out = ops.steer(on, *given, scale=1.5)
    oracle.assert_rounded(out.cpu(), want, size_of(x, want), slack=2e-5)
    assert torch.equal(on.cpu(), x)
    ops.steer_(on, *given, scale=1.5)
    assert torch.equal(on.view(torch.uint8), out.view(torch.uint8))
    idle = [n for n in range(52) if (n // 4 if dense else int(token_row[n])) in (-1, 12)]
    assert torch.equal(on.cpu()[idle], x[idle])


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_steer_rms_norm(backend, device, dtype, dim, with_residual):
    x, residual, weight = rows(24, dim, dtype), rows(24, dim, dtype, seed=2), rows(1, dim, dtype, seed=5)[0]
    directions, table = unit(4, dim), adding(6, 4)
    total = x.double() + residual.double() * with_residual
    want = oracle.steered(total, directions, table)
    normed, stream = ops.steer_rms_norm_(
        on := x.to(device),
        weight.to(device),
        directions.to(device),
        table.to(device),
        residual=residual.to(device) if with_residual else None,
    )
    assert stream is on
    oracle.assert_rounded(stream.cpu(), want, size_of(total, want) + 5, slack=2e-5)
    normed_want = oracle.normed(stream.cpu(), weight)
    oracle.assert_rounded(normed.cpu(), normed_want, np.abs(normed_want).max(1), slack=4e-6)
    assert torch.equal(normed, ops.rms_norm(stream, weight.to(device)))


@pytest.mark.parametrize("dim", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [1, 20])
def test_bound_places(backend, device, dtype, dim, slots):
    """Other rows in each call, of a few sizes, some not aligned: the bits of the operations, and no others' rows."""
    weight, directions = rows(1, dim, dtype, seed=5)[0].to(device), unit(4, dim).to(device)
    table = SteerTable.empty(6, slots)
    table.direction[:, 0], table.strength[:, 0] = torch.arange(6) % 4, 0.5
    table = table.to(device)
    site, output, norm = (
        ops.Site(weight, directions, table),
        ops.SteerSite(directions, table),
        ops.NormSite(weight),
    )
    kept = []
    for n, seed, shift in ((6, 1, 0), (6, 2, 0), (12, 3, 0), (6, 4, 1), (6, 5, 0)):
        x = rows(n, dim, dtype, seed=seed).to(device)
        placed = torch.empty(x.numel() + shift, dtype=dtype, device=device)[shift:].view(n, dim)
        for row in (None, torch.arange(n, dtype=torch.int32, device=device) % 7 - 1):
            want, stream = ops.steer_rms_norm_(x.clone(), weight, directions, table, row)
            mine = placed.copy_(x) if shift else x.clone()
            assert torch.equal(site(mine, row), want)
            assert torch.equal(mine, stream)
            assert torch.equal(output(placed.copy_(x), row), stream)
            assert torch.equal(norm(placed.copy_(x)), ops.rms_norm(x, weight))
        kept.append((mine, mine.clone()))
    assert all(torch.equal(now, then) for now, then in kept)


@pytest.mark.parametrize(("n", "dim"), [(1, 4096), (33, 577), (3000, 512 if STUBBED else 4096)])
@pytest.mark.parametrize("k", [1, 171])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cosine", [False, True])
def test_project(backend, device, dtype, n, dim, k, cosine):
    x, directions, center = rows(n, dim, dtype), unit(k, dim), rows(1, dim, seed=6)[0]
    wide = x.double() - center.double()
    want = wide @ directions.double().T / (wide.norm(dim=1, keepdim=True) if cosine else 1)
    given = directions.to(device), center.to(device)
    out = ops.project(x.to(device), given[0], center=given[1], cosine=cosine).cpu()
    reach = 1 if cosine else wide.norm(dim=1, keepdim=True)
    assert ((out - want).abs() <= 3e-6 * reach).all()
    maximum, total = (torch.full((1, k), v, device=device) for v in (-torch.inf, 0.0))
    ops.project_extremes_(maximum, total, x.to(device), given[0], center=given[1], cosine=cosine)
    torch.testing.assert_close(maximum.cpu(), out.amax(0, keepdim=True), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(total.cpu().double(), want.sum(0, keepdim=True), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("triangle", [False, True])
@pytest.mark.parametrize("dim", [96] if STUBBED else [96, 1500, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments(backend, device, dtype, dim, triangle, monkeypatch):
    """Both ways to the second moment, against numpy."""
    monkeypatch.setattr(triton, "triangle_from", lambda _capability: 0 if triangle else float("inf"))
    x = rows(5000, dim, dtype) * 3
    x[:, ::7] += 200
    group = torch.randint(-1, 4, (5000,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    moments = Moments(4, dim, device=device)
    for part in (slice(0, 100), slice(100, 5000)):
        moments.update(x[part].to(device), group[part].to(device))
    counted = group >= 0
    want = np.cov(x[counted].double().numpy().T).reshape(dim, dim)
    spread = np.sqrt(np.outer(np.diag(want), np.diag(want)))
    assert (np.abs(moments.covariance().cpu().numpy() - want) <= 5e-5 * spread).all()
    for c in range(4):
        torch.testing.assert_close(
            moments.mean()[c].cpu(), x[group == c].double().mean(0), rtol=1e-6, atol=1e-6
        )


def test_more_than_two_to_the_31_elements(backend, device):
    """Offsets are 64 bits wide: the last row of a tensor that int32 cannot count."""
    dim, n = 65536, 32768 + 4
    if STUBBED or torch.cuda.mem_get_info()[0] < 2 * n * dim * 2:
        pytest.skip("needs 9 GB of free device memory")
    x = torch.zeros(n, dim, dtype=torch.bfloat16, device=device)
    x[-1] = rows(1, dim, torch.bfloat16)[0].to(device)
    last = x[-1].cpu()[None]
    directions, table = unit(2, dim), adding(1, 2)
    token_row = torch.full((n,), -1, dtype=torch.int32, device=device)
    token_row[-1] = 0
    ops.steer_(x, directions.to(device), table.to(device), token_row)
    want = oracle.steered(last, directions, table)
    oracle.assert_rounded(x[-1:].cpu(), want, size_of(last, want))
    assert not x[:-1].any()


def test_indices_out_of_range_read_nothing(backend, device):
    """Under compute-sanitizer this test says more."""
    x, directions, table = rows(4, 64), unit(2, 64), adding(2, 2)
    for bad in (2, 2**31 - 1, -2, -(2**31)):
        table.direction[0, 0] = bad
        out = ops.steer(x.to(device), directions.to(device), table.to(device)).cpu()
        assert torch.equal(out[:2], x[:2])
        assert not torch.equal(out[2:], x[2:])
        row = torch.tensor([bad, 1, 1, bad], dtype=torch.int32, device=device)
        out = ops.steer(x.to(device), directions.to(device), adding(2, 2).to(device), row).cpu()
        assert torch.equal(out[[0, 3]], x[[0, 3]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_row_touches_no_other(backend, device, bad):
    x, directions, table = rows(70, 4096).to(device), unit(3, 4096).to(device), adding(7, 3).to(device)
    broken = x.clone()
    broken[3, 5] = bad
    others = torch.arange(70, device=device) != 3
    for run in (lambda x: ops.steer(x, directions, table), lambda x: ops.project(x, directions)):
        assert torch.equal(run(broken)[others], run(x)[others])
