"""Places bound once: the same bits as `steer_rms_norm_`, `steer_` and `rms_norm`, whatever changes between calls."""

import ctypes
import types

import pytest
import torch

from emosteer import ops
from emosteer.ops import NormSite, Site, SteerSite, SteerTable, backends

from .cases import DTYPES, adding, rows, unit


def made(dim=96, k=5, programs=3, dtype=torch.float32):
    weight = rows(1, dim, dtype, seed=4)[0].clone()
    return weight, unit(k, dim), adding(programs, k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [False, True])
def test_the_bits_of_the_operation(backend, dtype, given):
    weight, directions, table = made(dtype=dtype)
    site = Site(weight, directions, table, scale=1.5, eps=1e-5, weight_offset=1.0)
    output = SteerSite(directions, table, scale=1.5)
    for n, strength in ((3, 0.5), (3, -1.0), (6, 0.5)):
        table.strength.fill_(strength)
        row = torch.tensor([2, -1, 0] * (n // 3), dtype=torch.int32) if given else None
        x = rows(n, 96, dtype)
        same, alone = x.clone(), x.clone()
        assert output(alone, row) is alone
        assert torch.equal(alone, ops.steer(x, directions, table, row, scale=1.5))
        normed = site(same, row)
        want, stream = ops.steer_rms_norm_(
            x, weight, directions, table, row, scale=1.5, eps=1e-5, weight_offset=1.0
        )
        assert torch.equal(normed, want)
        assert torch.equal(same, stream)


def test_a_weight_that_moves_is_bound_anew(backend):
    weight, directions, table = made()
    site, x = Site(weight, directions, table), rows(3, 96)
    before = site(x.clone())
    weight.data = weight.data * 2
    torch.testing.assert_close(site(x.clone()), before * 2, rtol=1e-6, atol=1e-6)
    half = x.half()
    weight.data = weight.data.half()
    want, _ = ops.steer_rms_norm_(half.clone(), weight, directions, table)
    assert torch.equal(site(half.clone()), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_alone(backend, dtype):
    """Of contiguous rows, of others, and after the weight has moved or changed its type."""
    weight = made(dtype=dtype)[0]
    site = NormSite(weight, eps=1e-5, weight_offset=1.0)
    for x in (
        rows(3, 96, dtype),
        rows(6, 96, dtype),
        rows(6, 96, dtype)[::2],
        rows(4, 96, dtype).view(2, 2, 96),
    ):
        same = x.clone()
        assert torch.equal(site(x), ops.rms_norm(x, weight, eps=1e-5, weight_offset=1.0))
        assert torch.equal(x, same)
    weight.data = weight.data * 2
    assert torch.equal(site(same), ops.rms_norm(same, weight, eps=1e-5, weight_offset=1.0))
    weight.data, x = weight.data.float(), same.float()
    assert torch.equal(site(x), ops.rms_norm(x, weight, eps=1e-5, weight_offset=1.0))
    with pytest.raises(ValueError, match=r"weight must have shape \[90\], as the columns of x, got \[96\]"):
        site(x[..., :90].contiguous())


def test_no_rows_are_no_launch(backend):
    """A batch of nothing, as an expert that no token is sent to is given."""
    weight, directions, table = made()
    nothing, none = torch.empty(0, 96), torch.empty(0, dtype=torch.int32)
    for row in (None, none):
        assert Site(weight, directions, table)(nothing, row).shape == (0, 96)
        assert SteerSite(directions, table)(nothing, row).shape == (0, 96)
    assert NormSite(weight)(nothing).shape == (0, 96)


def test_what_is_wrong_is_said():
    weight, directions, table = made()
    with pytest.raises(ValueError, match="scale must be a finite number, got inf"):
        SteerSite(directions, table, scale=float("inf"))
    with pytest.raises(ValueError, match="scale must be a finite number, got nan"):
        Site(weight, directions, table, scale=float("nan"))
    site = Site(weight, directions, table)
    with pytest.raises(ValueError, match="weight must have shape"):
        Site(weight[:4].clone(), directions, table)(rows(3, 96))
    for x, message in (
        (rows(3, 90), r"weight must have shape \[90\], as the columns of x, got \[96\]"),
        (rows(4, 96), "do not divide evenly over the 3 rows of the table"),
        (rows(6, 96)[::2], r"contiguous rows for a bound site, got strides \(192, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            site(x)
    output = SteerSite(directions, table)
    for x, message in (
        (rows(3, 90), "directions have 96 columns, x has 90"),
        (rows(4, 96), "do not divide evenly over the 3 rows of the table"),
        (rows(6, 96)[::2], r"contiguous rows for a bound site, got strides \(192, 1\)"),
        (rows(3, 96).double(), "float64"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            output(x)
    for place in (site, output):
        with pytest.raises(ValueError, match="token_row has 2 entries"):
            place(rows(3, 96), torch.zeros(2, dtype=torch.int32))
        apart = torch.tensor([[0, 9], [1, 9], [-1, 9]], dtype=torch.int32)[:, 0]
        assert torch.equal(place(rows(3, 96), apart), place(rows(3, 96), apart.clone()))
        with pytest.raises(ValueError, match="token_row is on meta"):
            place(rows(3, 96), torch.zeros(3, dtype=torch.int32, device="meta"))
    long = torch.tensor([0, 1, -1])
    assert torch.equal(site(rows(3, 96), long), site(rows(3, 96), long.int()))


def test_one_launch_a_call_and_nothing_else():
    """CUDA: launches counted; what a table, a bank or a weight needs is not looked at again."""
    from . import host

    weight, directions, table = made()
    with host.installed() as module, ops.backend("cuda"):
        site, x = Site(weight, directions, table), rows(3, 96)
        output, norm = SteerSite(directions, table), NormSite(weight)
        site(x), output(x), norm(x)
        counts = ctypes.c_int64.in_dll(ctypes.CDLL(module.__file__), "host_counts_only")
        counts.value = 1
        try:
            looked = types.SimpleNamespace(calls=0)

            def counted(*_):
                looked.calls += 1

            plain, SteerTable.columns = SteerTable.columns, counted
            try:
                for _ in range(10):
                    site(x), output(x), norm(x)
            finally:
                SteerTable.columns = plain
            assert (counts.value - 1, looked.calls) == (30, 0)
        finally:
            counts.value = 0


def test_triton_keeps_its_compiled_kernel():
    """Compiled for a GPU that is not there: planned once for each way of calling, then launches alone."""
    import os
    import subprocess
    import sys

    pytest.importorskip("triton")
    code = """
import torch
from emosteer import ops
from emosteer.ops import NormSite, Site, SteerTable, triton, backends
from emosteer.kernels.no_device import no_device
from emosteer.kernels.offline import TARGETS
from emosteer.kernels import launches
torch._C._cuda_getDevice = lambda: None
torch._C._cuda_getCurrentRawStream = lambda device: 0
triton.unavailable = lambda: None
x, weight = torch.ones(4, 576).bfloat16(), torch.ones(576).bfloat16()
directions, table = torch.nn.functional.normalize(torch.ones(3, 576), dim=1), SteerTable.empty(4)
row = torch.zeros(4, dtype=torch.int32)
planned = []
plan = launches.steer_rms_norm
launches.steer_rms_norm = lambda *a: (planned.append(1), plan(*a))[1]
with no_device(TARGETS["sm_90"]) as stub, ops.backend("triton"):
    seen = []
    stub.count = lambda *a: seen.append(a)
    site = Site(weight, directions, table)
    for _ in range(5):
        site(x)
    for _ in range(5):
        other = x.clone()
        site(other, row)
    plan_norm, norms = launches.rms_norm, []
    launches.rms_norm = lambda *a: (norms.append(1), plan_norm(*a))[1]
    norm = NormSite(weight)
    for _ in range(5):
        out = norm(x)
    print(len(seen) - 10, len(norms), seen[-1][9:].count(out.data_ptr()), seen[-1][9:].count(x.data_ptr()))
    del seen[10:]
print(len(seen), len(planned))
first, last = seen[5][9:], seen[9][9:]
plain = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in first]
print(len(plain) == len(last), sum(a != b for a, b in zip(plain, last)) <= 3, last.count(row.data_ptr()))
"""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)
    assert done.stdout.split("\n")[:3] == ["5 1 1 1", "10 2", "True True 1"], done.stderr


@pytest.mark.parametrize("dim", [576, 9000], ids=["resident", "in blocks"])
def test_a_kept_launch_keeps_no_address_of_the_first_rows(dim):
    """Wherever the kernel takes the stream: rows that are read in blocks are read and written by two names."""
    import os
    import subprocess
    import sys

    pytest.importorskip("triton")
    code = f"""
import torch
from emosteer import ops
from emosteer.ops import NormSite, Site, SteerSite, SteerTable, triton
from emosteer.kernels.no_device import no_device
from emosteer.kernels.offline import TARGETS
torch._C._cuda_getDevice = lambda: None
torch._C._cuda_getCurrentRawStream = lambda device: 0
triton.unavailable = lambda: None
dim = {dim}
weight, table = torch.ones(dim), SteerTable.empty(4)
directions = torch.nn.functional.normalize(torch.ones(3, dim), dim=1)
rows = torch.zeros(2, 4, dtype=torch.int32)
first, then = torch.ones(4, dim), torch.ones(4, dim)
with no_device(TARGETS["sm_90"]) as stub, ops.backend("triton"):
    seen = []
    stub.count = lambda *a: seen.append([v.data_ptr() if isinstance(v, torch.Tensor) else v for v in a[9:]])
    steered, output, norm = Site(weight, directions, table), SteerSite(directions, table), NormSite(weight)
    for call in (steered, output, norm, lambda x: steered(x, rows[int(x is then)]),
                 lambda x: output(x, rows[int(x is then)])):
        seen.clear()
        made = [call(x) for x in (first, then)]
        launched, again = seen
        own = [(first, then), (made[0], made[1]), (rows[0], rows[1])]
        moved = {{a.data_ptr(): b.data_ptr() for a, b in own}}
        print(len(launched) > 8, again == [moved.get(v, v) for v in launched], again != launched)
"""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)
    assert done.stdout.split("\n")[:5] == ["True True True"] * 5, done.stdout + done.stderr


def test_bound_by_backend(backend):
    """Another backend chosen later is the one that runs."""
    weight, directions, table = made()
    site, x = Site(weight, directions, table), rows(3, 96)
    site(x.clone())
    with ops.backend("reference"):
        assert torch.equal(site(x.clone()), ops.steer_rms_norm_(x.clone(), weight, directions, table)[0])
    assert backends.asked_here() == backend
