"""Makes the folder that kernel-builder builds from, and the variants that a local trial loads: a command.

    python kernels/hub/assemble.py out/hub --variant cuda --variant rocm

`torch-ext/emosteer_kernels` holds the Triton kernels of `kernels/triton` and the operations beside this file; imports
are relative, so that two versions can be loaded at once. Nothing is compiled: a variant is the same files for each
kind of GPU, with the `metadata.json` that the package `kernels` reads.
"""

import argparse
import json
import shutil
from pathlib import Path

HERE = Path(__file__).parent
NAME, MODULE = "emosteer-kernels", "emosteer_kernels"
# Compile, read or count kernels without a device: no part of what runs.
LEFT_OUT = {"kept.py", "no_device.py", "offline.py", "stream.py", "survey.py", "variants.py"}
INIT = '''"""Steering kernels of emosteer; see `operations`."""

from . import layers
from .operations import Table, project, rms_norm, steer_, steer_rms_norm_

__all__ = ["Table", "layers", "project", "rms_norm", "steer_", "steer_rms_norm_"]
'''


def assemble(out: Path, variants: list[str]) -> None:
    if out.exists():
        shutil.rmtree(out)
    package = out / "torch-ext" / MODULE
    shutil.copytree(HERE.parent / "triton", package, ignore=shutil.ignore_patterns("__pycache__", *LEFT_OUT))
    for name in ("operations.py", "layers.py"):
        shutil.copy(HERE / name, package / name)
    (package / "__init__.py").write_text(INIT)
    shutil.copy(HERE / "build.toml", out / "build.toml")
    for kind in variants:
        built = out / "build" / f"torch-{kind}"
        shutil.copytree(package, built)
        known = {"id": f"_{MODULE}_{kind}", "name": NAME, "version": 1, "license": "Apache-2.0"}
        known |= {"python-depends": [], "backend": {"type": kind}}
        (built / "metadata.json").write_text(json.dumps(known, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--variant", action="append", default=[], help="cuda, rocm or, in Triton's interpreter, cpu"
    )
    asked = parser.parse_args()
    assemble(asked.out, asked.variant)


if __name__ == "__main__":
    main()
