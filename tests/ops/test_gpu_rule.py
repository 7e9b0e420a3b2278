"""The rule that chooses between the kernels for a GPU: arithmetic, so it needs none."""

import pytest

from emosteer.ops import backends, gpu


@pytest.fixture
def built(monkeypatch):
    def having(*names):
        monkeypatch.setattr(backends, "unavailable", lambda name: None if name in names else "not here")

    return having


@pytest.mark.parametrize(
    ("call", "both"),
    [
        (("steer", 1, 4096), "cuda"),
        (("steer", 256, 8192), "cuda"),
        (("steer", 65536, 4096), "triton"),
        (("steer_rms_norm", 1, 16384), "triton"),
        (("rms_norm", 32, 4096), "cuda"),
        (("moments", 8, 4096), "triton"),
        (("project_extremes", 1, 4096), "triton"),
    ],
)
def test_by_operation_and_size(built, call, both):
    built("cuda", "triton")
    assert gpu.choose(*call) == both
    built("triton")
    assert gpu.choose(*call) == "triton"
    built()
    assert gpu.choose(*call) == "reference"


def test_projections_by_pairs(built):
    built("cuda", "triton")
    assert gpu.choose("project", 1, 4096, directions=171) == "cuda"
    assert gpu.choose("project", 512, 4096, directions=171) == "triton"
    built("cuda")
    assert gpu.choose("project", 512, 4096, directions=171) == "cuda"


def test_what_cuda_cannot_take(built):
    """Without Triton wide rows and tables of many slots are left to plain torch."""
    built("cuda", "triton")
    assert gpu.choose("steer", 1, 4096, slots=33) == "triton"
    built("cuda")
    assert gpu.choose("steer", 1, 4096, slots=33) == "reference"
    assert gpu.choose("steer", 1, 8193) == "reference"
    assert gpu.choose("moments", 1, 64) == "reference"
