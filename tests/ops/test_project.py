"""`project` against float64."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emosteer import ops

from .cases import DTYPES, adding, rows, strided, unit


def scores(x, directions, center=None, cosine=False):
    wide = x.double().numpy() - (0 if center is None else center.double().numpy())
    dots = wide @ directions.double().numpy().T
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.divide(dots, length, out=np.zeros_like(dots), where=length > 0) if cosine else dots, length


def assert_scores(x, directions, center=None, cosine=False):
    out = ops.project(x, directions, center=center, cosine=cosine)
    want, length = scores(x, directions, center, cosine)
    assert out.dtype == torch.float32
    assert out.shape == (*x.shape[:-1], len(directions))
    reach = 1.0 if cosine else length + (0 if center is None else center.norm().item())
    assert (np.abs(out.double().numpy() - want) <= 3e-6 * reach + 1e-30).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_rows(backend, data):
    x = data.draw(strided())
    dim = x.shape[-1]
    center = data.draw(st.sampled_from((None, rows(1, dim, seed=5)[0], rows(1, dim, torch.bfloat16)[0])))
    assert_scores(x, unit(data.draw(st.sampled_from((1, 5, 171))), dim), center, data.draw(st.booleans()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, 171])
@pytest.mark.parametrize(("n", "dim"), [(1, 4097), (3, 577), (700, 576)])
@pytest.mark.parametrize("cosine", [False, True])
def test_sizes(backend, dtype, k, n, dim, cosine):
    """Small ones go to the row kernel, large ones to a matrix product."""
    assert_scores(rows(n, dim, dtype), unit(k, dim), None, cosine)
    assert_scores(rows(n, dim, dtype), unit(k, dim), rows(1, dim, seed=9)[0], cosine)


def test_empty_and_zero_rows(backend):
    assert ops.project(torch.zeros(2, 0, 8), unit(3, 8)).shape == (2, 0, 3)
    out = ops.project(torch.zeros(2, 8), unit(3, 8), cosine=True)
    assert torch.equal(out, torch.zeros(2, 3))


@pytest.mark.parametrize("n", [5, 600])
@pytest.mark.parametrize("cosine", [False, True])
def test_a_broken_row_touches_no_other(backend, n, cosine):
    x, directions = rows(n, 576), unit(171, 576)
    want = ops.project(x, directions, cosine=cosine)
    x[2, 7] = float("nan")
    out = ops.project(x, directions, cosine=cosine)
    assert out[2].isnan().all()
    others = torch.arange(n) != 2
    assert torch.equal(out[others], want[others])


def test_rows_that_lie_otherwise_than_those_of_the_last_call():
    """A call is recognised by its shape, and by how its rows lie."""
    directions, wide = unit(3, 64), rows(8, 128)
    ops.project(wide[:, :64].contiguous(), directions)
    apart = wide[:, :64]
    torch.testing.assert_close(ops.project(apart, directions), ops.project(apart.contiguous(), directions))
    table = adding(1)
    ops.steer_(wide[:, :64].contiguous(), directions, table)
    steered, expected = wide.clone()[:, :64], wide[:, :64].contiguous()
    torch.testing.assert_close(
        ops.steer_(steered, directions, table), ops.steer_(expected, directions, table)
    )


def test_directions_of_another_dtype():
    with pytest.raises(TypeError, match="directions must be .*float32.*float64"), ops.backend("cpu"):
        ops.project(rows(2, 64), unit(3, 64).double())
