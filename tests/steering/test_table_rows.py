"""Programs written as records: one copy a change to each device that holds a replica, between two steps."""

import pytest
import torch

import emosteer as es
from emosteer.models.staging import Ring
from emosteer.models.table_rows import Replica, TableRows

NAMES = ("calm", "angry", "joyful")


def made(rows=4, slots=2):
    cpu = torch.device("cpu")
    return TableRows(NAMES.index, rows, slots, device=cpu, preserve_norm=True, relative=True)


def test_every_field_of_a_program():
    held = made()
    program = es.add("angry", 0.5) + es.cap("joyful", 0.25) + es.rotate("joyful", 90)
    with pytest.raises(ValueError, match="combines 3 directions, the table has 2 slots"):
        held.write([0], [program])
    held.write([2], [es.add("angry", 0.5) + es.floor("joyful", -0.25)])
    table = held.table
    assert table.direction.tolist() == [[-1, -1], [-1, -1], [1, 2], [-1, -1]]
    assert table.strength[2].tolist() == [0.5, 0.0]
    assert table.low[2].tolist() == [-torch.inf, -0.25]
    assert table.high[2].tolist() == [torch.inf, torch.inf]
    assert (int(table.preserve_norm[2]), int(table.relative[2])) == (2, 1)
    held.write([-2], [es.rotate("calm", 90)])
    assert table.rotate[2].tolist() == pytest.approx([torch.pi / 2, 0.0])
    table.validate(3)


class Event:
    """Recorded and waited for, as a device's."""

    def __init__(self, log):
        self.log = log

    def record(self, _stream):
        self.log.append(("record", id(self)))

    def synchronize(self):
        self.log.append(("wait", id(self)))


def test_one_copy_a_change_and_the_oldest_buffer_is_waited_for():
    record = torch.arange(64, dtype=torch.int32).view(4, 16)
    into, log = torch.zeros_like(record), []
    ring = Ring(record, torch.device("cpu"), depth=3, event=lambda: Event(log))
    for i in range(5):
        ring.send(record[1:3] + i, into[1:3])
        assert torch.equal(into[1:3], record[1:3] + i)
    waited = [event for what, event in log if what == "wait"]
    assert len(set(waited)) == 3
    assert waited[0] == waited[3]
    assert into[0].sum() == into[3].sum() == 0


def test_replicas_follow():
    """The device "meta" stands for a card: what is sent, how often, and that nothing else is."""
    held = made()
    sent = []

    class Recorder:
        def require_no_capture(self):
            pass

        def send(self, rows, into):
            sent.append(len(rows))
            into.copy_(rows)

    replica = es.ops.SteerTable.empty(4, 2)
    held._replicas[torch.device("cuda", 1)] = Replica(replica, replica, Recorder())
    assert held.on(torch.device("cuda", 1)) is replica
    address = replica.record.data_ptr()
    held.write(range(4), [es.add(name, 0.1) for name in (*NAMES, "calm")])
    held.write([3, 1], [es.ablate("angry"), es.programs.Program()])
    held.write([2], [es.hold("calm", 0.5)])
    assert sent == [4, 3, 1]
    assert replica.record.data_ptr() == address
    assert torch.equal(replica.record, held.table.record)


def test_refused_while_a_graph_is_captured(monkeypatch):
    held = made()
    ring = Ring(held.table.record, torch.device("cpu"))
    ring._device = torch.device("cuda", 0)
    table = es.ops.SteerTable.empty(4, 2)
    held._replicas[ring._device] = Replica(table, table, ring)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="programs cannot be set while a CUDA graph is captured"):
        held.write([0], [es.add("calm", 0.1)])
    assert not (held.table.direction >= 0).any(), "half of a change was made"


def test_numbers_beyond_float32_are_refused():
    rows = TableRows(["calm"].index, 1, 1, device=torch.device("cpu"), preserve_norm=True, relative=False)
    rows.write([0], [es.add("calm", 3.4028234e38)])
    for program in (es.add("calm", 1e39), es.cap("calm", -1e300), es.floor("calm", 3.5e38)):
        with pytest.raises(ValueError, match="has a number that float32 cannot hold"):
            rows.write([0], [program])
