"""Every backend that can run here, and outputs that start as NaN so that a value never written shows."""

import os
from contextlib import nullcontext

import pytest
import torch

from emosteer import ops
from emosteer.ops.backends import NAMES, unavailable

from . import host, interpreter


@pytest.fixture(params=NAMES)
def backend(request):
    """Each backend on CPU tensors: `triton` in its interpreter, `cuda` as the host build of its kernels."""
    name = request.param
    if name == "triton":
        if os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip('compiled kernels take no CPU tensors; run with -m "not gpu" or TRITON_INTERPRET=1')
        interpreter.mend()
    with host.installed() if name == "cuda" else nullcontext():
        if name != "cuda" and (reason := unavailable(name)):
            pytest.fail(f"{name}: {reason}")
        with ops.backend(name):
            yield name


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
