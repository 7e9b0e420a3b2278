"""What a process allows its own matrix products takes no digits of ours."""

import pytest
import torch

from emosteer import ops
from emosteer.ops.precision import whole_float32

from .cases import rows, unit


@pytest.fixture(params=["highest", "high", "medium"])
def allowed(request):
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    assert torch.get_float32_matmul_precision() == request.param, "left as it was found"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("shape", [(300,), (3, 100)])
def test_projections_and_moments(backend, allowed, shape):
    """ "medium" makes bfloat16 of float32 on processors that have it: 0.2 off where 1e-4 is rounding."""
    if backend == "triton" and allowed == "high":
        pytest.skip("the interpreter's products are NumPy's")
    x, directions = rows(300, 128).view(*shape, 128) + 30, unit(40, 128)
    x = x.repeat(8, *[1] * len(shape)) if backend == "cpu" else x  # enough for a library's product
    want = x.double() @ directions.double().T
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):  # checked, and recognised
            torch.testing.assert_close(ops.project(x, directions).double(), want, rtol=1e-5, atol=2e-3)
        moments = ops.Moments(1, 128).update(x)
    cov = torch.cov(x.double().reshape(-1, 128).T)
    assert (moments.covariance() - cov).abs().max() <= 2e-5 * cov.diag().max()


def test_the_newer_interface():
    """Asked by its own name: mixing the two raises."""
    matmul = torch.backends.cuda.matmul
    if not hasattr(matmul, "fp32_precision"):
        pytest.skip("torch before 2.9")
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        with whole_float32("cuda"):
            assert matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = before
