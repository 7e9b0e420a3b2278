"""setup.py builds `emosteer._cuda` where nvcc is found; EMOSTEER_CUDA leaves it out or insists on it."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from emosteer.ops import cuda, cuda_resources

ROOT = Path(__file__).parents[2]
# setup.py without setup(): prints the modules that it would build, then builds the last where asked to.
SCRIPT = """
import runpy, shutil, sys, setuptools
which = shutil.which
shutil.which = lambda name, *rest, **path: NVCC if name == "nvcc" else which(name, *rest, **path)
given = {}
setuptools.setup = given.update
runpy.run_path("setup.py")
print(*(module.name for module in given["ext_modules"]))
if len(sys.argv) > 1:
    distribution = setuptools.Distribution({"name": "emosteer", "ext_modules": given["ext_modules"][-1:]})
    command = given["cmdclass"]["build_ext"](distribution)
    command.build_lib = command.build_temp = sys.argv[1]
    command.ensure_finalized()
    command.run()
"""


def run(nvcc, wish, *arguments):
    environment = os.environ | {"EMOSTEER_CUDA": wish}
    command = [sys.executable, "-c", SCRIPT.replace("NVCC", repr(nvcc)), *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("nvcc", "wish", "modules"),
    [
        (None, "", "emosteer._cpu"),
        (None, "0", "emosteer._cpu"),
        ("/opt/nvcc", "0", "emosteer._cpu"),
        ("/opt/nvcc", "", "emosteer._cpu emosteer._cuda"),
        (None, "1", "emosteer._cpu emosteer._cuda"),
    ],
)
def test_what_is_built(nvcc, wish, modules):
    assert run(nvcc, wish).stdout.strip() == modules


def test_an_unknown_wish():
    done = run(None, "yes")
    assert done.returncode != 0
    assert "EMOSTEER_CUDA must be 0 (leave out emosteer._cuda) or 1 (insist on it), got 'yes'" in done.stderr


def test_insisting_without_nvcc(tmp_path):
    done = run(None, "1", tmp_path)
    assert done.returncode != 0
    assert (
        "EMOSTEER_CUDA=1 asks for emosteer._cuda and there is no nvcc; install a CUDA toolkit" in done.stderr
    )


@pytest.mark.parametrize("wish", ["", "1"])
def test_a_toolkit_that_does_not_work(tmp_path, wish):
    """Unasked, it keeps nothing else from building; asked for, it is an error. Either way it says why."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        '#!/bin/sh\n[ "$1" = --list-gpu-code ] && echo sm_90 && exit\necho "too new a g++" >&2; exit 1\n'
    )
    nvcc.chmod(0o755)
    done = run(str(nvcc), wish, tmp_path)
    assert (done.returncode == 0) == (wish == "")
    assert "too new a g++" in done.stderr + done.stdout
    assert not list(tmp_path.rglob("*.so"))


def test_an_old_toolkit(tmp_path):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho sm_60\n")
    nvcc.chmod(0o755)
    done = run(str(nvcc), "1", tmp_path)
    assert done.returncode != 0
    assert "compiles for none of sm_80, sm_90, sm_100" in done.stderr


def test_a_wheel_without_them_says_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "emosteer._cuda", None)  # as if it were not there
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda_resources, "find_spec", lambda _: None)  # nor triton, nor a toolkit
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    cuda_resources.architectures.cache_clear()
    for said in (cuda.unavailable(), importlib.import_module("emosteer.cli.doctor")._architectures()):
        assert "no CUDA kernels, as wheels have none" in said
        assert "EMOSTEER_CUDA=1 pip install" in said
        assert "pip install triton" in said
