"""A page in a real browser: what it shows after its scripts have run."""

import shutil
import subprocess
from pathlib import Path

import pytest

from .patience import PATIENCE

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=5000",
]


def _run(page: Path, fragment: str, folder: Path, *flags: str) -> str:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no Chromium here: make browser (Debian: apt-get install chromium)")
    command = [browser, *_FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, f"file://{page}{fragment}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def shown(page: Path, folder: Path, fragment: str = "") -> str:
    """The document as the browser has it once the scripts have run."""
    return _run(page, fragment, folder, "--dump-dom")


def picture(page: Path, folder: Path, fragment: str = "") -> Path:
    """A screenshot."""
    path = folder / "page.png"
    _run(page, fragment, folder, "--window-size=1100,1400", f"--screenshot={path}")
    return path
