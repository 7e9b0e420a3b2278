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
    with (
        pytest.raises(ValueError, match="table.strength has rows 4 entries apart and table.direction 16"),
        ops.backend("cpu"),
    ):
        ops.steer(rows(2, 8), unit(1, 8), SteerTable(*columns))


def test_pickle_makes_a_copy():
    table = pickle.loads(pickle.dumps(adding(2, 2)))
    assert torch.equal(table.direction, adding(2, 2).direction)
    assert "2 in use" in repr(table)


def test_a_row_lies_in_one_record(backend):
    """64 bytes for up to three slots, all columns views of it; written as a whole, the next call sees it."""
    table = SteerTable.empty(3, 3)
    assert table.record.shape == (3, 16)
    assert {c.untyped_storage().data_ptr() for c in table.columns()} == {table.record.data_ptr()}
    assert SteerTable.empty(1, 4).record.shape == (1, 32)
    x, directions, other = rows(3, 40), unit(4, 40), SteerTable.empty(3, 3)
    other.direction[1] = torch.tensor([2, 0, -1])
    other.strength[1, 0], other.high[1, 1], other.preserve_norm[1], other.relative[1] = 0.5, 0.1, 2, 1
    table.record[1].copy_(other.record[1])
    apart = SteerTable(*(column.contiguous() for column in other.columns()))
    assert apart.record is None
    want = ops.steer(x, directions, apart)
    assert not torch.equal(want[1], x[1])
    for same in (table, other, pickle.loads(pickle.dumps(other))):
        assert torch.equal(ops.steer(x, directions, same), want)
    table.clear_()
    assert torch.equal(ops.steer(x, directions, table.copy_(apart)), want)


def test_columns_that_lie_apart_are_put_together(backend):
    """An operator may be handed copies of some columns and views of the rest."""
    x, directions, table = rows(2, 40), unit(2, 40), adding(2, 2)
    columns = [column.clone() if i % 2 else column for i, column in enumerate(table.columns())]
    out = torch.ops.emosteer.steer(x, directions, *columns, None, 1.0)
    assert torch.equal(out, ops.steer(x, directions, table))
