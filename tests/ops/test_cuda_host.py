"""What is the CUDA kernels' own, run through the host build: limits, indices, launches, large offsets."""

import ctypes
import mmap
import subprocess
import sys
import tempfile
import types

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from emosteer import ops
from emosteer.ops import SteerTable, backends, cuda, cuda_resources

from . import host, oracle
from .cases import adding, rows, unit
from .host import build, checks


@pytest.fixture(autouse=True)
def kernels():
    with host.installed() as module, ops.backend("cuda"):
        yield module


def test_indices_out_of_range_are_empty_slots():
    checks.indices_out_of_range()


@pytest.mark.parametrize("preserve", [0, 1, 2])
@pytest.mark.parametrize("dim", [40, 1100])
def test_a_lane_for_every_slot(dim, preserve):
    """32 slots, more than the rank of their directions in 20 of the columns: the Gram matrix is singular."""
    directions = unit(32, dim)
    directions[:, 20:] = 0
    directions /= directions.norm(dim=1, keepdim=True)
    table = SteerTable.empty(1, 32)
    table.direction[0] = torch.arange(32)
    table.strength.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(1))
    table.preserve_norm.fill_(preserve)
    x = rows(3, dim)
    want = oracle.steered(x, directions, table)
    oracle.assert_rounded(ops.steer(x, directions, table), want, np.linalg.norm(want, axis=1) + 8, slack=2e-5)


def test_wider_rows_and_more_slots_go_elsewhere(monkeypatch):
    taken = []
    elsewhere = types.SimpleNamespace(
        steer_=lambda *_: taken.append("steer_"),
        steer=lambda *_: taken.append("steer"),
        rms_norm=lambda *_: taken.append("rms_norm"),
        steer_rms_norm_=lambda *_: taken.append("steer_rms_norm_"),
        project=lambda *_: taken.append("project"),
        moments_update_=lambda *_: taken.append("moments_update_"),
    )
    monkeypatch.setattr(cuda, "_rest", lambda: elsewhere)
    x, directions, weight = rows(1, 8193), unit(1, 8193), torch.ones(8193)
    ops.steer_(x, directions, adding())
    ops.steer(x, directions, adding())
    ops.rms_norm(x, weight)
    ops.steer_rms_norm_(x, weight, directions, adding())
    ops.project(x, directions)
    ops.moments_update_(ops.Moments(1, 8193, scatter=False), x)
    ops.steer_(rows(1, 8), unit(1, 8), SteerTable.empty(1, 33))
    assert taken == ["steer_", "steer", "rms_norm", "steer_rms_norm_", "project", "moments_update_", "steer_"]


def test_limits_say_why(kernels):
    assert cuda.limit(1, 8192, slots=32) is None
    assert "8193 columns do not fit the registers" in cuda.limit(1, 8193)
    assert "33 slots" in cuda.limit(1, 64, slots=33)
    assert "more than one launch counts" in cuda.limit(2**31, 1)
    assert (kernels.max_dim, kernels.max_slots) == (cuda.MAX_DIM, cuda.MAX_SLOTS)


def test_what_the_module_refuses(kernels):
    x = kernels.Rows(0, 1, 0, 0)
    with pytest.raises(ValueError, match="x has 0 rows"):
        kernels.rms_norm(0, x, x, 0, 64, 0, 0, 1e-6, 0.0, 0, 0)
    with pytest.raises(ValueError, match="x has 8193 columns, the cuda backend takes 1 to 8192"):
        kernels.rms_norm(0, x, x, 1, 8193, 0, 0, 1e-6, 0.0, 0, 0)
    with pytest.raises(ValueError, match="dtype must be"):
        kernels.rms_norm(3, x, x, 1, 64, 0, 0, 1e-6, 0.0, 0, 0)
    with pytest.raises(ValueError, match="table has 33 slots"):
        kernels.Table(1, 33, 0, 0, 0, 0, 0, 0, 0, 33, 1)


def test_launches_are_on_the_callers_device_and_stream(kernels):
    library = ctypes.CDLL(kernels.__file__)
    current = ctypes.c_int64.in_dll(library, "host_device")
    launched_on = (ctypes.c_int64 * 2).in_dll(library, "host_launched_on")
    x, out, weight = rows(2, 64), torch.empty(2, 64), torch.ones(64)
    views = [kernels.Rows(t.data_ptr(), 1, 256, 0) for t in (x, out)]
    current.value = 0
    kernels.rms_norm(0, *views, 2, 64, weight.data_ptr(), 0, 1e-6, 0.0, 3, 4242)
    assert list(launched_on) == [3, 4242]
    assert current.value == 0, "the caller's device was not restored"
    assert torch.equal(out, ops.rms_norm(x, weight))


def sparse(count, dtype):
    """Zeros that take memory only where they are touched."""
    size = count * torch.empty(0, dtype=dtype).element_size()
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offsets_beyond_32_bits(dtype):
    """Rows further apart than 2³¹ elements."""
    stride, dim = 2**31 + 8, 72
    whole = sparse(2 * stride + dim, dtype)
    x = whole.as_strided((3, dim), (stride, 1))
    x.copy_(rows(3, dim, dtype))
    directions, table, weight = unit(3, dim), adding(3, 3), torch.ones(dim)
    want = ops.steer(rows(3, dim, dtype), directions, table)
    assert torch.equal(ops.steer(x, directions, table), want)
    assert torch.equal(ops.rms_norm(x, weight), ops.rms_norm(rows(3, dim, dtype), weight))
    assert torch.equal(ops.project(x, directions), ops.project(rows(3, dim, dtype), directions))
    ops.steer_(x, directions, table)
    assert torch.equal(x.contiguous(), want)
    apart = whole.as_strided((2, 3, dim), (stride, dim + 8, 1))  # two strides, the outer one beyond 32 bits
    assert torch.equal(ops.steer(apart, directions, table), ops.steer(apart.contiguous(), directions, table))


def test_directions_beyond_32_bits():
    """K·D > 2³¹: the last direction of a bank that is mostly not there. Its lengths are not checked here."""
    dim, k = 8192, 2**18 + 3
    bank = sparse(k * dim, torch.float32).view(k, dim)
    bank[-1] = unit(1, dim)[0]
    table = adding()
    table.direction.fill_(k - 1)
    x = rows(1, dim)
    want = cuda.steer(x, unit(1, dim), adding(), None, 1.0)
    assert torch.equal(cuda.steer(x, bank, table, None, 1.0), want)


def test_a_table_is_checked_once_and_read_at_each_call():
    x, directions, table = rows(2, 24), unit(3, 24), adding(2, 3)
    for strength in (0.5, -1.0):
        table.strength.fill_(strength)
        want = oracle.steered(x, directions, table)
        oracle.assert_rounded(ops.steer(x, directions, table), want, np.linalg.norm(want, axis=1) + 5)
    columns = [*table.columns()[:1], torch.zeros(2, 1, dtype=torch.float64), *table.columns()[2:]]
    with pytest.raises(TypeError, match=r"table.strength must be torch.float32"):
        ops.steer(x, directions, SteerTable(*columns))


def test_tensors_of_another_device_are_refused(monkeypatch):
    """The real module takes addresses on a GPU; that of a CPU tensor must never reach it."""
    monkeypatch.setattr(cuda, "_cuda", types.SimpleNamespace(device_type="cuda"))
    for call in (
        lambda x: ops.steer_(x, unit(1, 8), adding(1, 1)),
        lambda x: ops.steer(x, unit(1, 8), adding(1, 1)),
        lambda x: ops.rms_norm(x, torch.ones(8)),
        lambda x: ops.steer_rms_norm_(x, torch.ones(8), unit(1, 8), adding(1, 1)),
        lambda x: ops.project(x, unit(1, 8)),
    ):
        with pytest.raises(ValueError, match="x is on cpu, the cuda backend takes tensors on a cuda device"):
            call(rows(1, 8))


def test_why_it_cannot_run(monkeypatch):
    monkeypatch.setattr(cuda, "_cuda", None)
    backends.unavailable.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.unavailable() == "torch sees no NVIDIA GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "compute capability 7.5, the kernels need 8.0" in cuda.unavailable()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "AMD" in cuda.unavailable()
    backends.unavailable.cache_clear()


def test_one_empty_launch_decides(kernels, monkeypatch):
    """A module may load and not run: built for a newer driver, or for other cards. The doctor says so."""
    library = ctypes.CDLL(kernels.__file__)
    launched_on = (ctypes.c_int64 * 2).in_dll(library, "host_launched_on")
    kernels.launch_nothing(2)
    assert list(launched_on) == [2, 0]

    def fails(_device):
        raise RuntimeError("CUDA cannot launch a row kernel: CUDA driver version is insufficient")

    monkeypatch.setattr(cuda, "_cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    loads = types.SimpleNamespace(launch_nothing=fails, __file__=kernels.__file__)
    monkeypatch.setattr(cuda.cuda_module, "load", lambda: loads)
    backends.unavailable.cache_clear()
    try:
        reason = backends.unavailable("cuda")
        assert "loads but cannot launch an empty kernel (CUDA cannot launch a row kernel" in reason
        with pytest.raises(RuntimeError, match=r"backend='cuda' cannot run here: emosteer._cuda loads but"):
            ops.backend("cuda")
        from emosteer.cli import app

        told = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "400"}, catch_exceptions=False).output
        assert "driver version is insufficient" in told
        loads.launch_nothing = lambda _device: None
        backends.unavailable.cache_clear()
        assert backends.unavailable("cuda") is None
    finally:
        cuda_resources.architectures.cache_clear()
        backends.unavailable.cache_clear()


def beside(apart, dim=1100):
    """Two directions an angle of about `apart` from each other, and `add + cap` on them."""
    directions = unit(2, dim)
    near = directions[0].double() + apart * directions[1].double()
    directions[1] = (near / near.norm()).float()
    table = SteerTable.empty(1, 2)
    table.direction[0] = torch.tensor([0, 1])
    table.strength[0, 0], table.high[0, 1], table.preserve_norm[0] = 0.5, 0.1, 2
    return directions, table


@pytest.mark.parametrize("apart", [1.0, 0.3, 0.1, 0.03, 0.003, 0.0])
def test_several_directions_keep_the_norm(apart):
    """In float32, and in float64 where it cannot tell the directions apart: both as exact as rounding allows."""
    x, (directions, table) = rows(4, 1100) * 3, beside(apart)
    want = oracle.steered(x, directions, table)
    off = np.linalg.norm(ops.steer(x, directions, table).double().numpy() - want, axis=1)
    assert off.max() <= 3e-7 * np.linalg.norm(want, axis=1).max()


def test_only_rows_that_need_it_take_float64():
    """Where a planted 77 stands for the float64 path, directions that are told apart never see it."""
    exact = "  if (outcome == Outcome::inexact) {"
    planted = "  if (outcome == Outcome::inexact) {\n    x[0] = 77, outcome = Outcome::steered;\n  } else if (false) {"
    module = build.built(flags=("-O1",), changes={"steer.cuh": [(exact, planted)]})
    code = f"""
from pathlib import Path
from emosteer import ops
from tests.ops.host import build, installed
from tests.ops.test_cuda_host import beside, rows
with installed(build.load(Path({str(module)!r}))), ops.backend("cuda"):
    print(*(int((ops.steer(rows(2, 40) * 3, *beside(apart, 40)) == 77).any()) for apart in (1.0, 0.1, 0.0)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=build.ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["0", "0", "1"], done.stderr
