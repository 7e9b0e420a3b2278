"""The rule that chooses between the kernels for a GPU: arithmetic, so it needs none."""

import pytest
import torch

from emosteer.ops import SteerTable, backends, gpu, reference, sites
from emosteer.ops.extremes import fold_

from . import host
from .cases import rows, unit


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


def test_bound_places_by_size(monkeypatch):
    """CUDA's for few elements and Triton's for many, each bound once, rows as they come."""
    called = []

    def bound(kind):
        def bind(run, site, dtype):
            called.append((kind, run.__name__.split(".")[-1], "bound"))
            return lambda x, *row: called.append((kind, run.__name__.split(".")[-1], len(x), len(row)))

        return bind

    for kind in ("bind", "bind_steer", "bind_norm"):
        monkeypatch.setattr(sites, kind, bound(kind))
    monkeypatch.setattr(backends, "unavailable", lambda name: None)
    monkeypatch.setattr(gpu, "LAUNCH_BOUND_ELEMENTS", 128)
    weight, directions, table = torch.ones(64), unit(3, 64), SteerTable.empty(1)
    for kind, site, more in (
        ("bind", sites.Site(weight, directions, table), (None,)),
        ("bind_steer", sites.SteerSite(directions, table), (None,)),
        ("bind_norm", sites.NormSite(weight), ()),
    ):
        called.clear()
        run = getattr(gpu, kind)(site, torch.float32)
        run(rows(2, 64), *more)
        run(rows(3, 64), *more)
        ready = [(kind, name, "bound") for name in ("cuda", "triton")]
        assert called == [*ready, (kind, "cuda", 2, len(more)), (kind, "triton", 3, len(more))]


def test_extremes_without_triton(built):
    """CUDA's scores, folded by plain torch: the reference has no such operation."""
    built("cuda")
    assert gpu.choose("project_extremes", 8, 4096, directions=171) == "cuda"
    assert gpu.choose("project_extremes", 8, 16384, directions=171) == "reference"
    built("cuda", "triton")
    assert gpu.choose("project_extremes", 8, 4096, directions=171) == "triton"


@pytest.mark.parametrize("dim", [70, 8200])
def test_extremes_run_without_triton(monkeypatch, dim):
    """The host build on CPU tensors, and beyond its width the reference; rows of no program, and a NaN."""
    x, directions = rows(6, dim), unit(3, dim)
    x[1, 2] = float("nan")
    row = torch.tensor([0, 1, 1, -1, 0, 5], dtype=torch.int32)
    want, got = ([torch.full((2, 3), -torch.inf), torch.zeros(2, 3)] for _ in range(2))
    fold_(reference, *want, x, directions, row, None, False)
    with host.installed(), monkeypatch.context() as patch:
        patch.setattr(backends, "unavailable", lambda name: None if name == "cuda" else "not here")
        gpu.project_extremes_(*got, x, directions, row, None, False)
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=1e-4, equal_nan=True)
    assert want[1][1].isnan().all()
    assert not want[1][0].isnan().any()
