"""The folder for Hugging Face's Kernel Hub: assembled, loaded as the package `kernels` loads it, and right."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emosteer import ops

from . import interpreter
from .cases import adding, rows, unit

HUB = Path(__file__).parents[2] / "kernels" / "hub"
pytest.importorskip("triton")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "emosteer-kernels"
    command = [sys.executable, str(HUB / "assemble.py"), str(out), "--variant", "cpu", "--variant", "cuda"]
    subprocess.run(command, check=True)
    return out


@pytest.fixture
def loaded(folder):
    """The variant for CPUs, Triton's interpreter, from its own path under the name that its metadata gives."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("compiled kernels take no CPU tensors")
    interpreter.mend()
    variant = folder / "build" / "torch-cpu"
    name = json.loads((variant / "metadata.json").read_text())["id"]
    if importlib.util.find_spec("kernels").origin:  # and not this checkout's folder of that name
        from kernels import get_local_kernel

        return get_local_kernel(folder, backend="cpu")
    spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_as_the_operations(loaded):
    x, weight, directions = rows(4, 64), torch.rand(64) + 0.5, unit(3, 64)
    mine, theirs = loaded.Table.empty(2, device="cpu"), adding(2, 3)
    mine.direction.copy_(theirs.direction)
    mine.strength.copy_(theirs.strength)
    mine.preserve_norm.copy_(theirs.preserve_norm)
    close = {"rtol": 1e-5, "atol": 1e-5}
    steered = loaded.steer_(x.clone(), directions, mine)
    torch.testing.assert_close(steered, ops.steer(x, directions, theirs), **close)
    assert not torch.equal(steered, x)
    normed = loaded.steer_rms_norm_(x.clone(), weight, directions, mine)
    torch.testing.assert_close(normed, ops.rms_norm(steered, weight), **close)
    torch.testing.assert_close(loaded.project(x, directions), ops.project(x, directions), **close)
    layer = loaded.layers.RMSNorm()
    layer.weight, layer.variance_epsilon = torch.nn.Parameter(weight), 1e-6
    torch.testing.assert_close(layer(x), ops.rms_norm(x, weight), **close)
    untouched = loaded.steer_(x.clone(), directions, loaded.Table.empty(1, device="cpu"))
    assert torch.equal(untouched, x)
    with pytest.raises(ValueError, match="x must be contiguous"):
        loaded.rms_norm(x.T, weight[:4])


def test_it_stands_alone(folder):
    """No file names emosteer as a module: two versions may be loaded into one process."""
    for path in folder.rglob("*.py"):
        assert "import emosteer" not in path.read_text()
        assert "from emosteer" not in path.read_text()


def test_the_build_is_understood(folder):
    kernels = pytest.importorskip("kernels._rust")
    build = kernels.Build.open(folder)
    assert [str(one) for one in build.general.backends] == ["cuda", "rocm"]
