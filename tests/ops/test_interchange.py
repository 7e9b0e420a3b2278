"""Arrays of other libraries go in without a copy: `project` and `Moments`."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from emosteer.ops import Moments, project
from emosteer.ops.interchange import shared


class Producer:
    """An array of some other library: it speaks DLPack and nothing else."""

    def __init__(self, tensor, device=None):
        self.tensor, self.device = tensor, device

    def __dlpack__(self, **arguments):
        return self.tensor.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.device or self.tensor.__dlpack_device__()


def unit(k, dim):
    rows = np.random.default_rng(0).standard_normal((k, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("cosine", [False, True])
def test_project_of_numpy_is_that_of_tensors(dtype, cosine):
    x = np.random.default_rng(1).standard_normal((3, 5, 48)).astype(dtype)
    v, center = unit(4, 48), np.full(48, 0.25, np.float32)
    got = project(x, v, center=center, cosine=cosine)
    t = torch.from_numpy
    assert torch.equal(got, project(t(x), t(v), center=t(center), cosine=cosine))
    exact = x.astype(np.float64) - center
    want = exact @ v.T.astype(np.float64) / (np.linalg.norm(exact, axis=-1, keepdims=True) if cosine else 1)
    assert np.abs(got.numpy() - want).max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_array_that_speaks_dlpack(dtype):
    x, v = torch.randn(6, 32).to(dtype), torch.from_numpy(unit(3, 32))
    assert torch.equal(project(Producer(x), Producer(v)), project(x, v))
    ours, theirs = Moments(2, 32), Moments(2, 32)
    group, weight = torch.tensor([0, 1, 1, -1, 0, 1], dtype=torch.int32), torch.rand(6)
    ours.update(x, group, weight)
    theirs.update(Producer(x), Producer(group), Producer(weight))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name])


def test_moments_of_numpy():
    x = np.random.default_rng(2).standard_normal((50, 16)).astype(np.float32)
    group = np.arange(50) % 3
    moments = Moments(3, 16).update(x[:20], group[:20]).update(x[20:], group[20:], np.ones(30, np.float32))
    want = np.stack([x[group == c].astype(np.float64).mean(0) for c in range(3)])
    assert np.abs(moments.mean().numpy() - want).max() < 1e-6
    assert np.abs(moments.covariance().numpy() - np.cov(x.T.astype(np.float64))).max() < 1e-5


def test_nothing_is_copied():
    x = np.zeros((4, 8), np.float32)
    assert shared(x).data_ptr() == x.ctypes.data
    assert shared(x[:, :6][::2]).data_ptr() == x.ctypes.data
    tensor = torch.zeros(4, 8)
    assert shared(Producer(tensor)).data_ptr() == tensor.data_ptr()
    assert shared(tensor) is tensor


def test_a_read_only_array_is_taken_without_a_warning(recwarn):
    x = np.ones((2, 8), np.float32)
    x.flags.writeable = False
    assert torch.equal(project(x, unit(2, 8)), project(torch.ones(2, 8), torch.from_numpy(unit(2, 8))))
    assert not recwarn.list


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((2, 8)), TypeError, "x must be float32, bfloat16 or float16, got float64"),
        (np.ones((2, 8), np.float32)[:, ::-1], ValueError, "runs backwards; call numpy.ascontiguousarray"),
        (np.ones((2, 8), ">f4"), TypeError, "foreign byte order"),
        (np.ones((8, 2), np.float32).T, ValueError, "x must be contiguous in its last dimension"),
        (np.ones((2, 7), np.float32), ValueError, "directions have 8 columns, x has 7"),
        ([[1.0] * 8], TypeError, "x must be a torch.Tensor, got list"),
        (Producer(torch.ones(2, 8), (2, 0)), ValueError, "must lie in the memory of the CPU"),
    ],
)
def test_what_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        project(x, unit(3, 8))


def test_arrays_that_would_end_the_process_are_refused():
    """torch.from_dlpack aborts on strides that run backwards; a subprocess shows that we do not get there."""
    code = (
        "import numpy as np\nfrom emosteer.ops import Moments\n"
        "try: Moments(1, 8).update(np.ones((2, 8), np.float32)[::-1])\n"
        "except ValueError as error: print('refused', error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0
    assert done.stdout.startswith("refused")
