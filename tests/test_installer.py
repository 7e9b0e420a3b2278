"""`tools/install.py`: uv is told what pip is configured to do, and pip takes over in words where uv cannot."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tools" / "install.py"
PYTHON = Path(sys.prefix) / "bin" / "python"


@pytest.fixture(scope="module")
def install():
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_pip_is_configured_to_do(install, tmp_path, monkeypatch):
    """Files and environment, several values, and what is for other commands."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://one.invalid/simple\ntimeout = 7\n"
        "extra-index-url =\n    https://two.invalid/simple\n    https://three.invalid/simple\n"
        "[install]\nno-index = false\n[download]\nfind-links = elsewhere\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("PIP_INDEX_URL", "https://mine.invalid/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "wheels more")
    settings = install.configured(PYTHON)
    assert settings["index-url"] == ["https://mine.invalid/simple"]
    assert settings["timeout"] == ["7"]
    options = list(install.translated(settings))
    pairs = set(zip(options[::2], options[1::2]))
    assert pairs >= {
        ("--default-index", "https://mine.invalid/simple"),
        ("--index", "https://two.invalid/simple"),
        ("--index", "https://three.invalid/simple"),
        ("--find-links", "wheels"),
        ("--find-links", "more"),
    }
    assert not {"elsewhere", "--no-index"} & set(options)
    assert "--no-index" in install.translated({"no-index": ["1"]})


def test_pip_takes_over_in_words(tmp_path):
    """uv, or what stands for it, that ends with an error; and pip asked for. Nothing is fetched."""
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    log = tmp_path / "calls"
    stand_in = f'#!/bin/sh\necho "$@" >> {log}\n'
    for name in ("python", "uv"):
        (environment / "bin" / name).write_text(
            stand_in + ("echo no route >&2; exit 2\n" if name == "uv" else "")
        )
        (environment / "bin" / name).chmod(0o755)
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import install; from pathlib import Path;"
        f"install.TOOLS = Path({str(environment / 'bin')!r}); sys.exit(install.main())"
    )
    command = [sys.executable, "-c", code, str(environment), "some-package"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "pip installs some-package, since no route" in done.stderr
    asked = log.read_text().splitlines()
    assert any(line.startswith("pip install --quiet --python") for line in asked)
    assert asked[-1].startswith("-m pip install")
    assert asked[-1].endswith("some-package")
    log.unlink()
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"EMOSTEER_INSTALLER": "pip"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(log.read_text().splitlines()) == 1
