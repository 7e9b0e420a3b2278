"""What is particular to Triton: where it runs, what is imported when, offsets of 64 bits, rows in blocks."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from emosteer import ops
from emosteer.ops import SteerTable

from . import interpreter, oracle
from .cases import DTYPES, adding, rows, unit

pytest.importorskip("triton")


@pytest.fixture
def triton():
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("compiled kernels take no CPU tensors")
    interpreter.mend()
    with ops.backend("triton"):
        yield


def python(code, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True
    )


def test_nothing_imports_triton_until_it_is_used():
    done = python(
        "import sys, emosteer.ops as ops, emosteer.ops.triton, torch\n"
        "ops.rms_norm(torch.ones(2, 8), torch.ones(8))\n"
        "print([m for m in sys.modules if m.split('.')[0] == 'triton' or m.startswith('emosteer.kernels.')])"
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do():
    done = python("import emosteer.ops as ops\nops.backend('triton')")
    assert "backend='triton' cannot run here: there is no GPU; TRITON_INTERPRET=1" in done.stderr


def test_offsets_beyond_32_bits(triton):
    """Rows 2^30 elements apart: the third lies where an int32 offset is negative. Pages never touched cost nothing."""
    far = np.zeros(2**31 + 64, dtype=np.uint16)
    x = torch.from_numpy(far).view(torch.bfloat16).as_strided((3, 64), (2**30, 1))
    x.copy_(rows(3, 64, torch.bfloat16))
    want = oracle.steered(x.contiguous(), unit(3, 64), adding(3, 3))
    out = ops.steer(x, unit(3, 64), adding(3, 3))
    oracle.assert_rounded(out, want, np.full(3, 20.0))
    ops.steer_(x, unit(3, 64), adding(3, 3))
    assert torch.equal(x, out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preserve", [0, 1, 2])
@pytest.mark.parametrize("slots", [1, 3])
def test_rows_in_blocks(triton, dtype, preserve, slots):
    """Above 8192 columns: every kind of slot, by sums alone."""
    dim = 8200
    x, directions, table = rows(4, dim, dtype), unit(3, dim), SteerTable.empty(4, slots)
    table.direction[:, 0] = torch.tensor([0, 1, 2, 0])
    table.strength[0], table.high[1], table.rotate[2, 0] = 0.7, 0.1, 0.3
    table.relative[3], table.low[3] = 1, 0.2
    table.direction[:, 1:] = torch.tensor([[1], [-1], [0], [2]])
    table.preserve_norm.fill_(preserve)
    want = oracle.steered(x, directions, table)
    size = np.linalg.norm(want, axis=1) + 90
    oracle.assert_rounded(ops.steer(x, directions, table), want, size)
    weight = rows(1, dim, dtype, seed=4)[0]
    normed, stream = ops.steer_rms_norm_(x, weight, directions, table)
    oracle.assert_rounded(stream, want, size)
    normed_want = oracle.normed(stream, weight)
    oracle.assert_rounded(normed, normed_want, np.abs(normed_want).max(1), slack=4e-6)


@pytest.mark.parametrize("preserve", [0, 1, 2])
def test_tables_of_many_slots(triton, preserve):
    """More than 16 slots: the row leaves the registers to what solves them."""
    x, directions, table = rows(3, 96), unit(40, 96), SteerTable.empty(1, 20)
    table.direction[0] = torch.arange(20) * 2
    table.direction[0, 7] = -1
    table.strength[0] = torch.linspace(-0.5, 0.5, 20)
    table.high[0, 3] = 0.1
    table.preserve_norm.fill_(preserve)
    want = oracle.steered(x, directions, table)
    oracle.assert_rounded(
        ops.steer(x, directions, table), want, np.linalg.norm(want, axis=1) + 20, slack=2e-5
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("slots", [1, 3])
def test_both_paths(triton, monkeypatch, dtype, slots):
    """Rows that are aligned stay in registers, the same rows an element further on come in blocks: both are right."""
    from emosteer.kernels import launches

    run, chosen = launches.Launch.run, []
    monkeypatch.setattr(
        launches.Launch, "run", lambda self: (chosen.append(self.kernel.fn.__name__), run(self))[1]
    )
    aligned, directions, weight = rows(4, 96, dtype), unit(3, 96), rows(1, 96, dtype, seed=4)[0]
    apart = torch.empty(4 * 96 + 1, dtype=dtype)[1:].view(4, 96).copy_(aligned)
    table = SteerTable.empty(4, slots)
    table.direction[:, 0] = torch.tensor([0, 1, -1, 2])
    table.strength[:, 0], table.preserve_norm[:] = 0.4, torch.tensor([0, 1, 0, 2])
    want = oracle.steered(aligned, directions, table)
    size = np.full(4, 20.0)
    for x in (aligned, apart):
        oracle.assert_rounded(ops.steer(x, directions, table), want, size)
        normed, stream = ops.steer_rms_norm_(x.clone() if x is aligned else x, weight, directions, table)
        oracle.assert_rounded(stream, want, size)
        normed_want = oracle.normed(stream, weight)
        oracle.assert_rounded(normed, normed_want, np.abs(normed_want).max(1), slack=4e-6)
        assert torch.equal(stream[2], aligned[2])
    assert chosen == ["steer_kernel", "steer_rms_norm_kernel", "steer_long_kernel", "steer_long_kernel"]


def test_nearly_parallel_directions(triton):
    """Form 2 with directions a thousandth apart: what the Gram matrix of float32 loses, the second pass returns."""
    base = torch.nn.functional.normalize(rows(1, 256, seed=3).double(), dim=1)
    other = torch.nn.functional.normalize(base + 0.01 * unit(1, 256, seed=4).double(), dim=1)
    directions, x = torch.cat([base, other]).float(), rows(3, 256) * 5
    table = SteerTable.empty(1, 2)
    table.direction[0] = torch.tensor([0, 1])
    table.strength[0] = torch.tensor([0.5, -0.25])
    table.preserve_norm[0] = 2
    want = oracle.steered(x, directions, table)
    oracle.assert_rounded(ops.steer(x, directions, table), want, np.full(3, 80.0), slack=2e-5)


def test_too_many_slots(triton):
    with pytest.raises(ValueError, match="table has 65 slots, the triton backend takes at most 64"):
        ops.steer(rows(1, 8), unit(1, 8), SteerTable.empty(1, 65))


@pytest.mark.parametrize("dim", [1, 100, 300])
def test_the_triangle_of_the_second_moment(triton, dim, monkeypatch):
    """The kernel for wide rows, at widths that a CPU can: tiles on and below the diagonal, the last one cut."""
    from emosteer.ops import triton as backend

    monkeypatch.setattr(backend, "triangle_from", lambda _capability: 1)
    x, weight = rows(150, dim) + 40, torch.rand(150, generator=torch.Generator().manual_seed(1))
    moments = ops.Moments(1, dim)
    for part in (slice(0, 20), slice(20, 150)):
        moments.update(x[part], weight=weight[part])
    want = np.cov(x.double().numpy().T, aweights=weight.double().numpy(), ddof=0).reshape(dim, dim)
    found = moments.covariance(correction=0).numpy()
    assert np.abs(found - want).max() <= 2e-5 * np.diag(want).max()
    assert torch.equal(moments.scatter, moments.scatter.tril())


@pytest.mark.parametrize("name", ["project", "moments"])
def test_more_rows_than_a_grid_takes(triton, name):
    x = torch.zeros(1, 16).expand(17_000_000, 16)  # one row in memory
    run = {
        "project": lambda: ops.project(x, unit(3, 16)),
        "moments": lambda: ops.Moments(1, 16, False).update(x),
    }[name]
    with pytest.raises(ValueError, match="x has 17000000 rows, one call on a GPU takes at most"):
        run()


def test_a_triangle_whose_rows_stand_apart(triton, monkeypatch):
    from emosteer.ops import triton as backend

    monkeypatch.setattr(backend, "triangle_from", lambda _capability: 1)
    x = rows(5, 1024)
    moments = ops.Moments(1, 1024).update(x)
    assert not moments.scatter.is_contiguous()
    centred = x.double() - moments.shift
    torch.testing.assert_close(moments.scatter.double(), (centred.T @ centred).tril(), rtol=1e-5, atol=1e-5)


def test_which_second_moment():
    """By counted work: only where bfloat16 products are thirty times as many as float32's is a triangle worth six."""
    from emosteer.ops.triton import triangle_from

    assert triangle_from((10, 0)) == 4096
    for other in ((8, 0), (8, 6), (8, 9), (9, 0), (12, 0), None):
        assert triangle_from(other) == float("inf")


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("n", [1, 40])
def test_columns_split_between_programs(triton, n, cosine):
    """Few rows: parts of the columns, added up in a second kernel, the last part shorter."""
    from emosteer.kernels import launches

    x, directions, center = rows(n, 2500), unit(70, 2500), rows(1, 2500, seed=3)[0]
    assert launches.splits(x, directions) == 3
    assert launches.splits(rows(65, 2500), directions) == 0
    wide = x.double() - center.double()
    want = wide @ directions.double().T / (wide.norm(dim=1, keepdim=True) if cosine else 1)
    found = ops.project(x, directions, center=center, cosine=cosine)
    torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5 if cosine else 1e-4)


def test_the_other_way_to_float32s_digits():
    """tf32x3, where bf16x6 is unknown: three products of two parts of 11 bits, emulated."""

    def tf32(x):
        bits = x.view(torch.int32)
        return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    a, b = rows(20, 4096), unit(50, 4096)
    (a1, a2), (b1, b2) = ((big := tf32(t), tf32(t - big)) for t in (a, b))
    found = (a2 @ b1.T + a1 @ b2.T) + a1 @ b1.T
    error = (found.double() - a.double() @ b.double().T).abs()
    assert (error <= 3e-6 * a.double().norm(dim=1, keepdim=True)).all()


def test_what_the_installed_triton_lacks(monkeypatch):
    """A version without tuples, and one that cannot launch, are told before a call needs them."""
    import types

    import triton.language as tl

    from emosteer.kernels import capability
    from emosteer.ops import triton as backend

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.unavailable() is None
    monkeypatch.delattr(tl, "tuple")
    assert "knows no tuples" in backend.unavailable()
    monkeypatch.undo()

    def fails():
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(capability, "INTERPRETED", False)
    monkeypatch.setattr(capability, "_nothing", {(1,): fails})
    assert (
        "cannot launch an empty kernel here (RuntimeError: Failed to find C compiler)"
        in backend.unavailable()
    )
    monkeypatch.undo()
    options = types.SimpleNamespace(allowed_dot_input_precisions=("tf32", "tf32x3", "ieee"))
    monkeypatch.setattr(capability, "INTERPRETED", False)
    monkeypatch.setattr(capability, "_options", lambda _platform: options)
    assert capability.precision.__wrapped__("cuda") == "tf32x3"
    options.allowed_dot_input_precisions = ("ieee",)
    assert capability.precision.__wrapped__("hip") == "ieee"
