"""`steer_` and `steer` against the formulas in float64."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emosteer import ops
from emosteer.ops import SteerTable

from . import oracle
from .cases import DTYPES, adding, rows, strided, tables, unit

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reach(x, want):
    """The length of what float32 arithmetic handled in each row."""
    size = x.double().reshape(-1, x.shape[-1]).norm(dim=1).numpy()
    return np.maximum(size, np.linalg.norm(want, axis=1)) + 1.0


@FUZZ
@given(data=st.data())
def test_any_rows_any_table(backend, data):
    x = data.draw(strided())
    count = x.numel() // x.shape[-1]
    k = data.draw(st.integers(1, 9))
    # Directions that are not nearly parallel: their Gram matrix is what float32 can solve.
    directions = torch.linalg.qr(unit(x.shape[-1], x.shape[-1], seed=k).double()).Q[:k].float().contiguous()
    k = len(directions)
    if data.draw(st.booleans()):
        programs = data.draw(st.integers(1, 5))
        token_row = torch.tensor(
            data.draw(st.lists(st.integers(-1, programs - 1), min_size=count, max_size=count)),
            dtype=torch.int32,
        )
    else:
        programs = data.draw(st.sampled_from([d for d in range(1, count + 1) if count % d == 0]))
        token_row = None
    table = data.draw(tables(k, programs))
    scale = data.draw(st.sampled_from((1.0, 0.3, 25.0)))
    want = oracle.steered(x, directions, table, token_row, scale)

    before = x.clone()
    out = ops.steer(x, directions, table, token_row, scale=scale)
    assert torch.equal(x, before), "steer wrote into its input"
    size = reach(before, want) + 8 * scale * 2
    oracle.assert_rounded(out, want, size, slack=2e-5)
    returned = ops.steer_(x, directions, table, token_row, scale=scale)
    assert returned is x
    assert torch.equal(x.contiguous().view(torch.uint8), out.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 576, 577, 4097])
@pytest.mark.parametrize("k", [1, 171])
@pytest.mark.parametrize("preserve", [0, 1, 2])
def test_add_is_rounded_once(backend, dtype, dim, k, preserve):
    x, directions = rows(6, dim, dtype), unit(k, dim)
    table = adding(programs=3, k=k, preserve=preserve)
    want = oracle.steered(x, directions, table)
    oracle.assert_rounded(ops.steer(x, directions, table), want, reach(x, want))


@pytest.mark.parametrize("slots", range(1, 9))
def test_slots_act_at_once(backend, slots):
    """Overlapping directions, each with a bound: every slot reads the same row."""
    x, directions = rows(5, 64), unit(9, 64, seed=3)
    table = SteerTable.empty(5, slots)
    for s in range(slots):
        table.direction[:, s] = torch.arange(5) + s - 1  # the first row starts with an empty slot
        table.high[:, s] = 0.1 * s
        table.strength[:, s] = 0.05
    table.direction.clamp_(max=8)
    want = oracle.steered(x, directions, table)
    oracle.assert_rounded(ops.steer(x, directions, table), want, reach(x, want))


def test_no_rows(backend):
    for shape in ((0, 8), (2, 0, 8)):
        x = torch.zeros(shape)
        assert ops.steer_(x, unit(1, 8), adding(2, 1)) is x
        assert ops.steer(x, unit(1, 8), adding(2, 1)).shape == shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preserve", [0, 1, 2])
def test_idle_tokens_keep_every_bit(backend, dtype, preserve):
    """Row −1, empty slots, and bounds that are not reached: NaN payloads and signed zeros included."""
    x = rows(6, 33, dtype)
    x[0, 0], x[1, 1] = -0.0, torch.finfo(dtype).smallest_normal / 4
    x.view(torch.int32 if dtype == torch.float32 else torch.int16)[2, 3] |= (
        0x7FC0 if dtype != torch.float32 else 0x7FC00001
    )
    before = x.clone()
    table = adding(3, 2, preserve=preserve)
    table.direction[1] = -1
    table.strength[2] = 0.0
    table.high[2] = 1e4
    token_row = torch.tensor([-1, 1, -1, 1, 2, 2], dtype=torch.int32)
    ops.steer_(x, unit(2, 33), table, token_row)
    assert torch.equal(x.view(torch.uint8), before.view(torch.uint8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("preserve", [0, 1, 2])
def test_a_broken_row_touches_no_other(backend, bad, preserve):
    x, directions, table = rows(7, 65), unit(3, 65), adding(7, 3, preserve=preserve)
    want = ops.steer(x, directions, table)
    x[3, 5] = bad
    out = ops.steer(x, directions, table)
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(out[others], want[others])


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1e25), (torch.float16, 6e4), (torch.bfloat16, 1e30)]
)
@pytest.mark.parametrize("preserve", [1, 2])
def test_lengths_beyond_the_dtype(backend, dtype, scale, preserve):
    """The square of the norm overflows float32, or the norm the dtype; the row does not."""
    x = (torch.sign(rows(4, 64)) * scale).to(dtype)
    directions, table = unit(2, 64), adding(4, 2, preserve=preserve)
    want = oracle.steered(x, directions, table, scale=scale)
    out = ops.steer(x, directions, table, scale=scale)
    fits = torch.from_numpy(np.abs(want)) < torch.finfo(dtype).max
    want = np.where(fits.numpy(), want, 0)
    oracle.assert_rounded(torch.where(fits, out, 0), want, reach(x, want), slack=1e-5)


@pytest.mark.parametrize("preserve", [0, 1, 2])
def test_ablating_most_of_a_row(backend, preserve):
    """What is left is a small difference of large numbers; with form 2 the bound still holds."""
    directions = unit(1, 128)
    x = 50 * directions.repeat(3, 1) + 0.05 * rows(3, 128)
    table = SteerTable.empty(1)
    table.direction[0, 0], table.low[0, 0], table.high[0, 0] = 0, 0.0, 0.0
    table.preserve_norm[0] = preserve
    out = ops.steer(x, directions, table)
    along = out.double() @ directions[0].double()
    if preserve == 1:  # rescaling the tiny rest magnifies its rounding
        assert out.norm(dim=1).sub(x.norm(dim=1)).abs().max() < 1e-2
    else:
        assert along.abs().max() < 50 * 1e-5 * (100 if preserve == 2 else 1)


def test_a_direction_used_twice(backend):
    """Strengths add up; the Gram matrix of form 2 is singular and must not matter."""
    x, directions = rows(3, 40), unit(2, 40)
    table = SteerTable.empty(3, 2)
    table.direction.fill_(1)
    table.strength[:, 0], table.strength[:, 1] = 0.25, 0.5
    table.preserve_norm[:] = torch.tensor([0, 1, 2], dtype=torch.uint8)
    want = oracle.steered(x, directions, table)
    oracle.assert_rounded(ops.steer(x, directions, table), want, reach(x, want))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [17, 64, 576])
@pytest.mark.parametrize("preserve", [0, 1, 2])
def test_rows_of_one_program_are_as_each_alone(backend, dtype, dim, preserve):
    tiny = torch.finfo(dtype).smallest_normal
    x = rows(11, dim, dtype)
    x[1] = 0
    x[2, 3] = float("nan")
    x[4] *= 1e4
    x[6] = tiny / 8
    x[7, ::2] = 0
    x[8] *= tiny
    for strength in (0.3, tiny / 16):
        directions, table = unit(1, dim), adding(1, 1, strength=strength, preserve=preserve)
        together = ops.steer(x, directions, table)
        assert together[2].isnan().all()
        sound = [n for n in range(len(x)) if n != 2]
        for n in sound:
            alone = ops.steer(x[n : n + 1], directions, table)
            assert torch.equal(together[n : n + 1].view(torch.uint8), alone.view(torch.uint8)), n
        want = oracle.steered(x[sound], directions, table)
        size = reach(x[sound], want) - 1 + tiny
        oracle.assert_rounded(together[sound], want, size)


@pytest.mark.parametrize("degrees", [-180, -60, 0.5, 30, 90, 180])
def test_rotation_stops_at_the_direction(backend, degrees):
    x, directions = rows(4, 96), unit(1, 96)
    x[1] = directions[0] * 3  # parallel: no plane to turn in
    x[2] = -directions[0]
    table = SteerTable.empty(4)
    table.direction.zero_()
    table.rotate.fill_(float(np.radians(degrees)))
    out = ops.steer(x, directions, table)
    torch.testing.assert_close(out[1:3], x[1:3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=0)
    for n in (0, 3):
        before = np.degrees(np.arccos((x[n] @ directions[0] / x[n].norm()).item()))
        after = np.degrees(np.arccos(np.clip((out[n] @ directions[0] / out[n].norm()).item(), -1, 1)))
        assert after == pytest.approx(np.clip(before - degrees, 0, 180), abs=0.05)


def test_expanded_rows_are_one_memory(backend):
    """Rows that share memory cannot be steered in place, each its own way."""
    x = rows(1, 16).expand(4, 16)
    out = ops.steer(x, unit(4, 16), adding(4, 4))
    want = oracle.steered(x.contiguous(), unit(4, 16), adding(4, 4))
    oracle.assert_rounded(out, want, reach(x, want))
    before = x.clone()
    with pytest.raises(ValueError, match=r"x has rows that share memory \(strides \(0, 1\)\)"):
        ops.steer_(x, unit(4, 16), adding(4, 4))
    assert torch.equal(x, before)


def test_the_shortcut_of_a_repeated_call_sees_every_change():
    """The second call like the first skips the checks; anything that changed goes through them again."""
    x, directions, table = rows(2, 24), unit(3, 24), adding(2, 3)
    for _ in range(3):
        want = oracle.steered(x, directions, table)
        oracle.assert_rounded(ops.steer_(x, directions, table), want, reach(x, want))
    table.strength.fill_(-1)
    want = oracle.steered(x, directions, table)
    oracle.assert_rounded(ops.steer_(x, directions, table), want, reach(x, want))
    with pytest.raises(ValueError, match="scale"):
        ops.steer_(x, directions, table, scale=float("nan"))
    with pytest.raises(TypeError, match="float64"):
        ops.steer_(x.double(), directions, table)
    with pytest.raises(ValueError, match="divide evenly"):
        ops.steer_(rows(3, 24), directions, table)
    with pytest.raises(RuntimeError, match="requires a gradient"):
        ops.steer_(rows(2, 24).requires_grad_(), directions, table)
    every_second = rows(4, 24)[::2]
    want = oracle.steered(every_second, directions, table)
    oracle.assert_rounded(ops.steer_(every_second, directions, table), want, reach(every_second, want))
    table.direction[0, 0] = 3
    with ops.backend("reference"), pytest.raises(ValueError, match="index below"):
        ops.steer_(x, directions, table)
    table.direction[0, 0] = 0
    directions.mul_(2)
    with pytest.raises(ValueError, match="length 2"):
        ops.steer_(x, directions, table)
