"""`rms_norm` and `steer_rms_norm_` against float64 and against transformers."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emosteer import ops

from . import oracle
from .cases import DTYPES, adding, rows, strided, tables, unit

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_normed(got, stream, weight, **options):
    want = oracle.normed(stream, weight, **options)
    oracle.assert_rounded(got, want, np.abs(want).max(axis=1), slack=4e-6)


@FUZZ
@given(data=st.data())
def test_any_rows(backend, data):
    x = data.draw(strided())
    weight = rows(1, x.shape[-1], data.draw(st.sampled_from(DTYPES)), seed=7)[0]
    options = {
        "eps": data.draw(st.sampled_from((1e-6, 1e-5, 0.1))),
        "weight_offset": data.draw(st.sampled_from((0.0, 1.0))),
    }
    assert_normed(ops.rms_norm(x, weight, **options), x, weight, **options)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extremes(backend, dtype):
    """Squares that overflow float32, and a row of zeros."""
    x = torch.stack([torch.full((70,), torch.finfo(dtype).max / 2), torch.zeros(70)]).to(dtype)
    out = ops.rms_norm(x, torch.ones(70))
    assert_normed(out, x, torch.ones(70))
    assert torch.equal(out[1], x[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_as_transformers_does(backend, dtype):
    """Hugging Face rounds twice, before and after the weight: at most one unit in the last place apart."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm = LlamaRMSNorm(576, eps=1e-5).to(dtype)
    norm.weight.data = rows(1, 576, dtype, seed=3)[0]
    x = rows(9, 576, dtype, scale=30.0)
    with torch.no_grad():
        theirs, ours = norm(x), ops.rms_norm(x, norm.weight, eps=1e-5)
    apart = (theirs.double() - ours.double()).abs()
    assert (
        apart <= 1.01 * torch.finfo(dtype).eps * theirs.double().abs() + 1e-6 * (dtype == torch.float32)
    ).all()


@FUZZ
@given(data=st.data())
def test_steering_inside_the_norm(backend, data):
    x = data.draw(strided(count=6, dims=(64, 577)))
    dim = x.shape[-1]
    directions = torch.linalg.qr(unit(dim, dim).double()).Q[:4].float().contiguous()
    table = data.draw(tables(4, 3))
    weight = rows(1, dim, x.dtype, seed=7)[0]
    residual = data.draw(
        st.sampled_from((None, rows(6, dim, x.dtype, seed=8), rows(6, dim + 3, x.dtype)[:, 3:]))
    )
    total = x.double() if residual is None else x.double() + residual.double()
    want = oracle.steered(total, directions, table)
    normed, stream = ops.steer_rms_norm_(x, weight, directions, table, residual=residual, eps=1e-5)
    assert stream is x
    size = total.norm(dim=1).numpy() + np.linalg.norm(want, axis=1) + 20
    oracle.assert_rounded(x.contiguous(), want, size, slack=2e-5)
    assert_normed(normed, x, weight, eps=1e-5)  # the norm of the stream as it was stored


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_idle_rows_are_only_normed(backend, dtype, with_residual):
    x, residual = rows(5, 100, dtype), rows(5, 100, dtype, seed=2) if with_residual else None
    want = x.clone() if residual is None else x + residual
    table = adding(2, 2)
    token_row = torch.tensor([-1, 0, -1, -1, 1], dtype=torch.int32)
    normed, stream = ops.steer_rms_norm_(
        x, torch.ones(100), unit(2, 100), table, token_row, residual=residual
    )
    idle = [0, 2, 3]
    assert torch.equal(stream[idle], want[idle])
    assert not torch.equal(stream[[1, 4]], want[[1, 4]])
    assert torch.equal(normed, ops.rms_norm(stream, torch.ones(100)))


def test_no_rows(backend):
    normed, stream = ops.steer_rms_norm_(torch.zeros(0, 8), torch.ones(8), unit(1, 8), adding(2, 1))
    assert normed.shape == stream.shape == (0, 8)
    assert ops.rms_norm(torch.zeros(3, 0, 8), torch.ones(8)).shape == (3, 0, 8)
