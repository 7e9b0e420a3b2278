"""`formula.steer`, what compiled code contains, against the formulas in float64 and the operator's gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emosteer import ops
from emosteer.ops import SteerTable, formula

from . import oracle
from .cases import DTYPES, adding, rows, strided, tables, unit
from .test_steer import FUZZ, reach


def apart(dim, k):
    """At most `k` directions that are not nearly parallel."""
    return torch.linalg.qr(unit(dim, dim, seed=k).double()).Q[:k].float().contiguous()


@FUZZ
@given(data=st.data())
def test_any_rows_any_table(data):
    x = data.draw(strided())
    directions = apart(x.shape[-1], data.draw(st.integers(1, 9)))
    programs, count = data.draw(st.integers(1, 5)), x.numel() // x.shape[-1]
    numbers = st.lists(st.integers(-1, programs - 1), min_size=count, max_size=count)
    token_row = torch.tensor(data.draw(numbers), dtype=torch.int32)
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    table = data.draw(tables(len(directions), programs))
    scale = data.draw(st.sampled_from((1.0, 0.3, 25.0)))
    want = oracle.steered(x, directions, table, torch.where(keep, token_row, -1), scale)
    before = x.clone()
    shape = x.shape[:-1]
    out = formula.steer(
        x, directions, table, token_row.view(shape), keep=keep.view(shape), scale=torch.tensor(scale)
    )
    assert torch.equal(x, before)
    assert out.dtype == x.dtype
    # A rotation may end at its direction: what is left across is the root of a difference of equals.
    ends = bool(((table.rotate != 0).any(-1) & (table.preserve_norm == 2)).any())
    size = torch.from_numpy(reach(x, want) + 16 * scale) * shrunk(
        x, directions, table, torch.where(keep, token_row, -1), scale
    )
    oracle.assert_rounded(out, want, size, slack=4e-4 if ends else 2e-5)
    idle = ~keep | (token_row < 0)
    assert torch.equal(out.reshape(count, -1)[idle], x.reshape(count, -1)[idle])  # to the bit


def shrunk(x, directions, table, token_row, scale):
    """`[N]`: how much shorter rows are before their norm is restored, by which rounding grows with them."""
    free = SteerTable(*(column.clone() for column in table.columns()))
    free.preserve_norm[table.preserve_norm == 1] = 0
    left = torch.from_numpy(oracle.steered(x, directions, free, token_row, scale)).norm(dim=-1)
    norm = x.double().reshape(-1, x.shape[-1]).norm(dim=-1)
    whole = (table.preserve_norm == 1)[token_row.clamp(min=0).long()]
    return torch.where(whole, norm / left.clamp(min=1e-30), 1.0).clamp(min=1)


def test_nothing_is_left_to_keep_the_norm_of():
    """Two ablations that take up all of two dimensions: rounding may be what is scaled, but the norm is kept."""
    directions, table = apart(2, 2), SteerTable.empty(1, 2)
    table.direction[0], table.preserve_norm[0] = torch.tensor([0, 1]), 1
    table.low[0] = table.high[0] = 0.0
    x = torch.tensor([[0.0016804387560114264, -0.0014810257125645876]])
    out = formula.steer(x, directions, table, torch.zeros(1, dtype=torch.int32))
    assert float(out.norm()) == pytest.approx(float(x.norm()), rel=1e-5) or float(out.norm()) < 1e-9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 577, 4097])
@pytest.mark.parametrize("preserve", [0, 1, 2])
def test_add_is_rounded_once(dtype, dim, preserve):
    x, directions = rows(6, dim, dtype), unit(3, dim)
    table = adding(programs=3, preserve=preserve)
    token_row = torch.arange(6) // 2
    want = oracle.steered(x, directions, table, token_row)
    oracle.assert_rounded(formula.steer(x, directions, table, token_row), want, reach(x, want))


@pytest.mark.parametrize("preserve", [0, 1, 2])
@pytest.mark.parametrize("slots", [2, 8])
def test_overlapping_directions(slots, preserve):
    """Bounds on directions that are far from orthogonal, one of them given twice."""
    x, directions = rows(5, 64), unit(9, 64, seed=3)
    directions[8] = directions[0]
    table = SteerTable.empty(5, slots)
    for s in range(slots):
        table.direction[:, s] = torch.arange(5) + s
        table.high[:, s] = 0.1 * s
        table.strength[:, s] = 0.05
    table.direction.clamp_(max=8)
    table.preserve_norm.fill_(preserve)
    token_row = torch.arange(5)
    want = oracle.steered(x, directions, table, token_row)
    got = formula.steer(x, directions, table, token_row)
    oracle.assert_rounded(got, want, reach(x, want), slack=2e-5)
    layers = torch.stack([directions @ directions.T] * 2)
    programs = formula.look_up(table, token_row)
    given = formula.inverse_gram(layers, formula.slots_of(table, token_row))[
        1
    ]  # as a model of two layers does it
    oracle.assert_rounded(
        formula.steer(x, directions, table, token_row, programs=programs, inverse=given),
        want,
        reach(x, want),
        slack=2e-5,
    )


def test_not_finite_rows_stay_in_their_place():
    """A NaN or an infinity in one row reaches no other, and a row of zeros has no direction to divide by."""
    x, directions = rows(4, 32), unit(2, 32)
    table = adding(programs=4, k=2)
    want = formula.steer(x, directions, table, torch.arange(4))
    x[0], x[2, 3] = float("nan"), float("inf")
    got = formula.steer(x, directions, table, torch.arange(4))
    assert torch.equal(got[[1, 3]], want[[1, 3]])
    assert not got[[0, 2]].isfinite().any()
    zero = formula.steer(torch.zeros(4, 32), directions, table, torch.arange(4))
    assert torch.equal(zero, torch.zeros(4, 32))  # the norm is kept


@pytest.mark.parametrize("preserve", [0, 1, 2])
@pytest.mark.parametrize("relative", [0, 1])
def test_gradients(preserve, relative):
    """By differences in float64, and as the operator gives them in float32."""
    x, directions = rows(4, 7, seed=2), unit(3, 7)
    table = SteerTable.empty(2, 2)
    table.direction.copy_(torch.tensor([[0, 2], [1, -1]]))
    table.strength.copy_(torch.tensor([[0.3, -0.2], [0.1, 0.0]]))
    table.high[0, 1] = 0.05
    table.rotate[1, 0] = 0.4
    table.preserve_norm.fill_(preserve)
    table.relative.fill_(relative)
    token_row = torch.tensor([0, 1, -1, 0])
    exact = x.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: formula.steer(x, directions, table, token_row), exact, atol=1e-5
    )

    def of(steer):
        given = [x.clone().requires_grad_(), directions.clone().requires_grad_()]
        strength = table.strength.contiguous().clone().requires_grad_()
        own = SteerTable(
            table.direction.contiguous(), strength, *(c.contiguous() for c in table.columns()[2:])
        )
        weight = torch.linspace(-1, 1, x.numel()).view_as(x)
        (steer(*given, own, token_row.to(torch.int32)) * weight).sum().backward()
        along = (given[1].grad * directions).sum(-1, keepdim=True)  # directions stay of unit length
        return given[0].grad, given[1].grad - along * directions, strength.grad

    for ours, theirs in zip(of(formula.steer), of(ops.steer)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
