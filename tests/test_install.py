"""The package built, installed and broken in every way that people meet."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
USE = """
import sys
import emosteer, emosteer.kernels, torch
from emosteer import ops
x = torch.ones(2, 8)
table = ops.SteerTable.empty(1)
table.direction[0, 0], table.strength[0, 0] = 0, 1.0
ops.steer_(x, torch.eye(8)[:1].contiguous(), table)
assert x[0].tolist() == [2.0] + [1.0] * 7, x
print(emosteer.__file__)
"""


def run(code, *, cwd, path=None, **environment):
    kept = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "EMOSTEER_BACKEND", "TRITON_INTERPRET")
    }
    if path is not None:
        kept["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**kept, **environment}, capture_output=True, text=True
    )


def test_from_the_repository_root():
    done = run(USE, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "emosteer"


def test_editable(tmp_path):
    done = run(USE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "emosteer"


def test_transformers_beside_a_folder_named_kernels():
    done = run("from transformers import LlamaForCausalLM, AutoTokenizer; import emosteer.kernels", cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_importing_runs_nothing_heavy(tmp_path):
    code = (
        "import sys, emosteer; heavy = {'torch', 'transformers', 'triton', 'matplotlib', 'pyarrow', 'ray', 'sklearn'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = run(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.full
@pytest.mark.install
def test_regular_with_build_isolation(tmp_path):
    """`pip install .` from a copy of what a commit would hold: a wheel that needs only a C++ compiler to build."""
    source = tmp_path / "source"
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if not (ROOT / name).exists():
            continue
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    target = tmp_path / "site"
    done = subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(target), str(source)],
        env={**os.environ, "EMOSTEER_CUDA": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    done = run(USE, cwd=tmp_path, path=target)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == target / "emosteer"
    assert (target / "emosteer" / "emotions" / "data" / "stories.jsonl").is_file()
    assert (target / "emosteer" / "reading" / "page.html").is_file()
    assert (target / "emosteer" / "kernels" / "__init__.py").is_file()


def test_without_a_compiler(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "build_ext",
            "--build-temp",
            str(tmp_path),
            "--build-lib",
            str(tmp_path),
        ],
        cwd=ROOT,
        env={**os.environ, "CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "needs a C++ compiler and could not run 'no-such-compiler'" in done.stderr
    assert "apt-get install g++" in done.stderr


def test_without_the_compiled_module(tmp_path):
    package = tmp_path / "emosteer"
    shutil.copytree(
        ROOT / "emosteer", package, symlinks=False, ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    (package / f"_cpu{suffix}").write_bytes(b"not a module")  # a missing one would be found in the checkout
    done = run(USE, cwd=tmp_path, path=tmp_path)
    assert done.returncode != 0
    assert "emosteer._cpu is missing or does not load" in done.stderr
    assert "pip install -e ." in done.stderr
    done = run(USE, cwd=tmp_path, path=tmp_path, EMOSTEER_BACKEND="reference")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == package
