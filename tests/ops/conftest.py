"""Every backend that can run here, and outputs that start as NaN so that a value never written shows."""

import pytest
import torch

from emosteer import ops
from emosteer.ops.backends import NAMES, unavailable

ON_CPU = [name for name in NAMES if name in ("reference", "cpu")]


@pytest.fixture(params=ON_CPU)
def backend(request):
    if reason := unavailable(request.param):
        pytest.fail(f"{request.param}: {reason}")
    with ops.backend(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """`torch.empty` and `torch.empty_like` give NaN."""

    def poison(make):
        def made(*args, **kwargs):
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() and not out.is_meta else out

        return made

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
