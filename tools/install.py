"""Packages into an environment, by uv where it can be had, else by pip: `python tools/install.py ENVIRONMENT …`.

What follows the environment (a folder with bin/python) is what `pip install` would be given. uv installs the same
releases in a sixth of the time; it is told what pip is configured to do, of which it reads nothing by itself. Where it
cannot be had, or does not get through, pip does the work and a line says so. `EMOSTEER_INSTALLER=pip` asks for pip.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# uv lies beside what it installs first.
TOOLS = ROOT / ".venv" / "bin"
# What pip may be configured to do → uv's option for it. Others do not change which releases are taken.
OPTIONS = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
    "no-index": "--no-index",
}
QUIET = ("--quiet", "--no-compile", "--disable-pip-version-check")


def configured(python: Path) -> dict[str, list[str]]:
    """Pip's settings for `pip install` by name, each as its values; the environment counts before files."""
    command = [python, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sections: dict[str, dict[str, list[str]]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        if section in sections:
            sections[section][name] = str(ast.literal_eval(value)).split()
    return {name: values for section in sections.values() for name, values in section.items()}


def translated(settings: dict[str, list[str]]) -> Iterator[str]:
    """Pip's settings as options of `uv pip install`."""
    for name, values in settings.items():
        option = OPTIONS.get(name)
        if name == "no-index":
            if values and values[0].lower() in ("1", "true", "yes", "on"):
                yield "--no-index"
        elif option is not None:
            for value in values:
                yield from (option, value)


def by_uv(python: Path, packages: list[str]) -> str | None:
    """Why uv did not install them, None if it did."""
    uv = TOOLS / "uv"
    if not uv.exists():
        own = [TOOLS / "python", "-m", "pip", "install", *QUIET, "-c", ROOT / "constraints.txt", "uv"]
        if subprocess.run(own, capture_output=True).returncode or not uv.exists():
            return "uv cannot be installed here"
    settings = configured(python)
    environment = dict(os.environ)
    if "cert" in settings:
        environment.setdefault("SSL_CERT_FILE", settings["cert"][0])
    if "proxy" in settings:
        environment.setdefault("ALL_PROXY", settings["proxy"][0])
    for name in ("timeout", "default-timeout"):
        if name in settings:
            environment.setdefault("UV_HTTP_TIMEOUT", settings[name][0])
    options = [*translated(settings), "--index-strategy", "unsafe-best-match"]
    command = [uv, "pip", "install", "--quiet", "--python", python, *options, *packages]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stderr.strip() or f"uv ended with {done.returncode}" if done.returncode else None


def main() -> int:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    python, packages = Path(sys.argv[1]) / "bin" / "python", sys.argv[2:]
    if os.environ.get("EMOSTEER_INSTALLER") != "pip":
        why = by_uv(python, packages)
        if why is None:
            return 0
        print(f"pip installs {' '.join(packages)}, since {why}", file=sys.stderr, flush=True)
    return subprocess.run([python, "-m", "pip", "install", *QUIET, *packages]).returncode


if __name__ == "__main__":
    sys.exit(main())
