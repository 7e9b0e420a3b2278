"""Tests that need a CUDA (or ROCm) device: `pytest -m gpu`, in a process of their own.

They are collected everywhere. A process that interprets Triton's kernels cannot run them compiled, so
they are skipped there too.
"""

import os

import pytest
import torch

from emosteer import ops
from emosteer.ops import backends, gpu
from emosteer.ops.backends import unavailable
from tests.ops import host, interpreter

from .stub import STUBBED


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.nodeid:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device():
    if STUBBED:
        interpreter.mend()
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("kernels are interpreted in this process; run pytest -m gpu")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(params=["auto", "triton", "cuda"])
def backend(request, device, monkeypatch):
    """Each backend that takes tensors of the device, and the rule that chooses between them."""
    if STUBBED:
        with host.installed(), ops.backend(request.param):
            if request.param == "auto":  # the rule for a GPU in place of a CPU's kernels
                monkeypatch.setitem(backends._MODULES, (None, "cpu"), gpu)
            yield request.param
        return
    if request.param != "auto" and (reason := unavailable(request.param)):
        pytest.skip(f"{request.param}: {reason}")
    with ops.backend(request.param):
        yield request.param
