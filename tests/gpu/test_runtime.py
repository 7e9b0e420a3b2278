"""Streams, graphs, syncs, compilation and devices: what only a device can show."""

import pytest
import torch

from emosteer import ops
from emosteer.ops import Moments, SteerTable
from tests.ops import test_registration
from tests.ops.cases import adding, rows, unit

from .stub import STUBBED, captured, waits


def given(device, n=8, dim=4096, dtype=torch.bfloat16):
    return rows(n, dim, dtype).to(device), unit(3, dim).to(device), adding(n, 3).to(device)


def test_no_operation_waits(backend, device):
    x, directions, table = given(device)
    weight, row = torch.ones(4096, device=device), torch.arange(8, device=device, dtype=torch.int32)
    moments = Moments(8, 4096, device=device)
    best, total = torch.zeros(8, 3, device=device), torch.zeros(8, 3, device=device)

    def every():
        ops.steer_(x, directions, table)
        ops.steer_(x, directions, table, row)
        ops.steer(x, directions, table)
        ops.rms_norm(x, weight)
        ops.steer_rms_norm_(x, weight, directions, table, row, residual=x.clone())
        ops.project(x, directions, cosine=True)
        ops.project_extremes_(best, total, x, directions)
        moments.update(x, row)

    every()  # directions are checked and kernels compiled once, which does wait
    assert waits(every) == []


def test_a_first_update_of_moments_does_not_wait(backend, device):
    x = rows(64, 512).to(device)
    Moments(1, 512, device=device).update(x)
    fresh = Moments(1, 512, device=device)
    assert waits(lambda: fresh.update(x)) == []
    torch.testing.assert_close(fresh.mean()[0].cpu(), x.double().mean(0).cpu())


def test_the_callers_stream(backend, device):
    """Work waits for what was put on its stream before it, and for nothing else."""
    if STUBBED:
        pytest.skip("a CPU has one stream")
    x, directions, table = given(device, n=256)
    want = ops.steer(x + 1, directions, table)
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        later = x + 1
        out = ops.steer(later, directions, table)
        assert not stream.query(), "the call waited for its stream"
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(out, want)


def test_another_device(backend, device):
    """Tensors say where: the current device stays what it was."""
    if STUBBED or torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    want = ops.steer(*given(device))
    other = torch.device("cuda", (device.index + 1) % torch.cuda.device_count())
    out = ops.steer(*given(other))
    assert out.device == other
    assert torch.cuda.current_device() == device.index
    assert torch.equal(out.cpu(), want.cpu())
    with pytest.raises(ValueError, match="directions are on"):
        ops.steer(given(other)[0], *given(device)[1:])


def test_a_graph_sees_the_table(backend, device):
    """Captured once; programs change between replays by writing into the table."""
    x, directions, table = given(device)
    source = x.clone()
    weight = torch.ones(4096, dtype=torch.bfloat16, device=device)

    def step():
        x.copy_(source)
        return ops.steer_rms_norm_(x, weight, directions, table)[0]

    replay, normed = captured(step)
    for strength, direction in ((0.5, 1), (-0.25, 2), (0.0, 0)):
        table.strength.fill_(strength)
        table.direction.fill_(direction)
        replay()
        assert torch.equal(normed, step())
    table.clear_()
    replay()
    assert torch.equal(x, source)


@pytest.mark.parametrize("op", test_registration.OPS)
def test_opcheck(backend, device, op):
    arguments = [a.to(device) if isinstance(a, torch.Tensor) else a for a in test_registration.arguments(op)]
    operator = getattr(torch.ops.emosteer, op).default
    torch.library.opcheck(operator, tuple(arguments), test_utils=test_registration.OPCHECK)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_whole(backend, device, mode):
    """One graph without breaks; a change of the table needs no recompilation."""
    how = {"backend": "eager"} if STUBBED else {"mode": mode}
    torch._dynamo.reset()
    x, directions, table = given(device)
    weight = torch.ones(4096, dtype=torch.bfloat16, device=device)

    def run(x):
        stream = ops.steer(x * 2, directions, table)
        return ops.rms_norm(stream, weight) + 1

    compiled = torch.compile(run, fullgraph=True, **how)
    for strength in (0.5, -1.0, 2.0):
        table.strength.fill_(strength)
        first = strength == 0.5
        with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=not first):
            out = compiled(x).clone()
        torch.testing.assert_close(out, run(x), rtol=2e-2, atol=2e-2)


def test_tables_of_many_slots(backend, device):
    """Beyond 32 slots, and beyond what Triton takes."""
    x, directions = rows(2, 256).to(device), unit(64, 256).to(device)
    table = SteerTable.empty(1, 40, device=device)
    table.direction[0] = torch.arange(40, dtype=torch.int32)
    table.strength.fill_(0.1)
    want = x + 0.1 * directions[:40].sum(0)
    torch.testing.assert_close(ops.steer(x, directions, table), want, rtol=1e-5, atol=1e-5)
