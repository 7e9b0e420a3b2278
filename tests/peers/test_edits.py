"""The edit that every library's steering becomes: a repeated call is the call, and only a like one is repeated."""

import pytest
import torch

import emosteer as es
from emosteer import ops
from emosteer.compat.edits import Edit
from emosteer.ops import SteerTable

from .differential import DTYPES, kernels_run

VECTORS = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


def rows(*shape, dtype=torch.float32):
    return torch.randn(*shape, 32, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [{}, {"keep_norm": True}, {"push": False, "low": 0.5, "high": 0.5}], ids=str)
@pytest.mark.parametrize("programs", [1, 2])
def test_again_is_the_same(dtype, kind, programs):
    edit = Edit(VECTORS[:programs], **kind)
    first, second = rows(4, 3, dtype=dtype), rows(4, 3, dtype=dtype)
    assert not edit.again(second), "nothing has been checked yet"
    edit(first, in_place=True)
    assert edit.again(second)
    assert torch.equal(first, second)
    assert not torch.equal(first, rows(4, 3, dtype=dtype))


@pytest.mark.parametrize(
    "other",
    [
        rows(4, 2),
        rows(3),
        rows(4, 3, dtype=torch.bfloat16),
        rows(4, 3).requires_grad_(),
        rows(3, 4).transpose(0, 1),
        torch.nn.Parameter(rows(4, 3)),
        "not a tensor",
    ],
    ids=["length", "rank", "dtype", "gradient", "strides", "parameter", "text"],
)
def test_only_like_rows_are_repeated(other):
    edit = Edit(VECTORS[:1])
    edit(rows(4, 3), in_place=True)
    before = other.clone() if isinstance(other, torch.Tensor) else other
    assert not edit.again(other)
    assert before is other or torch.equal(before, other)


def test_a_backend_that_is_asked_for_runs():
    edit = Edit(VECTORS[:1])
    edit(rows(4, 3), in_place=True)
    with es.backend("reference"), kernels_run() as calls:
        x = rows(4, 3)
        assert not edit.again(x)
        edit(x, in_place=True)
    assert calls == ["steer_"]
    assert edit.again(rows(4, 3))


def test_a_table_of_several_slots():
    directions = torch.nn.functional.normalize(VECTORS, dim=1)
    table = SteerTable.empty(1, 2)
    table.direction[0] = torch.tensor([0, 1])
    table.strength[0, 0] = 2.0
    table.low[0, 1] = table.high[0, 1] = 0.0
    edit = Edit.of(directions, table)
    x = rows(4, 3)
    expected = ops.steer(x, directions, table)
    assert edit.fits(x)
    torch.testing.assert_close(edit(x.clone(), in_place=True), expected)
    assert edit.again(x)
    torch.testing.assert_close(x, expected)
