"""`SteerTable`: fixed addresses, readable errors, copies."""

import math
import pickle

import pytest
import torch

from emosteer import ops
from emosteer.ops import SteerTable

from .cases import adding, rows, unit


def test_an_empty_table_does_nothing(backend):
    table = SteerTable.empty(3, 2)
    assert table.validate(0) is table
    x = rows(3, 8)
    assert torch.equal(ops.steer(x, unit(1, 8), table), x)


def test_columns_are_written_never_replaced():
    table = SteerTable.empty(2)
    with pytest.raises(AttributeError, match=r"table.strength\[...\] = value"):
        table.strength = torch.ones(2, 1)
    addresses = [c.data_ptr() for c in table.columns()]
    table.copy_(adding(2, 2))
    table.clear_(0)
    assert [c.data_ptr() for c in table.columns()] == addresses
    assert table.direction.tolist() == [[-1], [1]]
    assert math.isinf(table.high[0, 0])


@pytest.mark.parametrize(("rows", "slots"), [(0, 1), (1, 0), (-1, 1), (1.0, 1)])
def test_sizes(rows, slots):
    with pytest.raises(ValueError, match="must be an integer of at least 1"):
        SteerTable.empty(rows, slots)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="other has 3 rows of 1 slots, this table has 2 of 1"):
        SteerTable.empty(2).copy_(SteerTable.empty(3))
    columns = list(SteerTable.empty(2, 2).columns())
    columns[1] = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"table.strength must have shape \[2, 2\], got \[2, 3\]"):
        SteerTable(*columns).validate(1)
    columns[1] = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match="table.strength must be torch.float32"):
        SteerTable(*columns).validate(1)
    with pytest.raises(TypeError, match="table.strength"), ops.backend("cpu"):
        ops.steer(rows(2, 8), unit(1, 8), SteerTable(*columns))
    columns[1] = torch.zeros(4, 2)[::2]
    with pytest.raises(ValueError, match="table.strength must be contiguous"):
        SteerTable(*columns).validate(1)


def test_pickle_makes_a_copy():
    table = pickle.loads(pickle.dumps(adding(2, 2)))
    assert torch.equal(table.direction, adding(2, 2).direction)
    assert "2 in use" in repr(table)
