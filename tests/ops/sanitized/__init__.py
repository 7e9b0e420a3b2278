"""The CPU row kernels under sanitizers, without Python: `make sanitize`.

The very files of `csrc/cpu` and the driver beside this file, compiled with GCC's or Clang's AddressSanitizer and
UndefinedBehaviorSanitizer, or with ThreadSanitizer. Threads are the language's own and not OpenMP's, whose runtime
ThreadSanitizer does not know; what each takes is `csrc/cpu/shares.hpp` either way.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from ..host.build import ROOT, _compiler
from ..host.changes import HEADER, Changes, changed

KERNELS = ROOT / "csrc" / "cpu"
SANITIZERS = {
    "memory": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "threads": ("-fsanitize=thread",),
}
# The code is compiled for one instruction set at a time, under the name of the first.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {"baseline": ()}
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTIONS |= {"avx2": ("-march=haswell",), "avx512bf16": ("-march=cooperlake",)}
_FLAGS = ("-std=c++17", "-O1", "-g1", "-fopenmp-simd", "-Wno-psabi", "-pthread", "-DEMOSTEER_ISA=baseline")


def built(
    folder: Path, sanitizer: str, instructions: str = "baseline", changes: Changes | None = None
) -> Path:
    """The driver, compiled.

    Args:
        folder: an empty one, for sources and driver.
        sanitizer: of `SANITIZERS`.
        instructions: of `INSTRUCTIONS`; the processor must have them to run it.
        changes: to files of `csrc/cpu`: planted bugs.
    """
    for path in KERNELS.iterdir():
        (folder / path.name).write_text(changed(path.name, path.read_text(), changes or {}))
    sources = [folder / "rows.cpp", folder / "dispatch.cpp", folder / "solve.cpp"]
    sources.append(Path(__file__).with_name("driver.cpp"))
    command = [*_compiler(), *_FLAGS, *SANITIZERS[sanitizer], *INSTRUCTIONS[instructions], f"-I{folder}"]
    command += ["-include", str(HEADER)] if changes else []
    subprocess.run([*command, *map(str, sources), "-o", str(folder / "driver")], check=True)
    return folder / "driver"


def run(driver: Path, bug: int = 0) -> subprocess.CompletedProcess[str]:
    """What it says, with one of the planted bugs awake or with none."""
    around = os.environ | {"HOST_BUG": str(bug)}
    return subprocess.run([str(driver)], capture_output=True, text=True, env=around)


def lacks(instructions: str) -> bool:
    """Whether the processor cannot run them."""
    flags = {"baseline": "", "avx2": "avx2", "avx512bf16": "avx512_bf16"}[instructions]
    said = Path("/proc/cpuinfo")
    return bool(flags) and (
        not said.exists() or f" {flags} " not in f"{said.read_text()} ".replace("\n", " ")
    )


def main() -> None:
    failed = False
    for sanitizer in SANITIZERS:
        for instructions in INSTRUCTIONS:
            if lacks(instructions):
                print(f"{sanitizer:8} {instructions:10} not run: this processor has no {instructions}")
                continue
            with tempfile.TemporaryDirectory() as folder:
                done = run(built(Path(folder), sanitizer, instructions))
            failed |= bool(done.returncode)
            print(
                f"{sanitizer:8} {instructions:10} {'failed' if done.returncode else 'silent'}: {done.stdout.strip()}"
            )
            print(done.stderr[-3000:], end="", flush=True)
    sys.exit(failed)
