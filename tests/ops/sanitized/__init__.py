"""The CPU row kernels under sanitizers, without Python: `make sanitize`.

The very files of `csrc/cpu` and the driver beside this file, compiled with GCC's or Clang's AddressSanitizer and
UndefinedBehaviorSanitizer, or with ThreadSanitizer. Threads are the language's own and not OpenMP's, whose runtime
ThreadSanitizer does not know; what each takes is `csrc/cpu/shares.hpp` either way.
"""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ..host.build import ROOT, _compiler

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


def run(
    sanitizer: str, instructions: str = "baseline", changes: Mapping[str, tuple[str, str]] | None = None
) -> subprocess.CompletedProcess[str]:
    """Compiles and runs the driver.

    Args:
        sanitizer: of `SANITIZERS`.
        instructions: of `INSTRUCTIONS`; the processor must have them.
        changes: by file of `csrc/cpu`, a text that occurs once in it and what to put instead: a planted bug.
    """
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        for path in KERNELS.iterdir():
            text = path.read_text()
            if path.name in (changes or {}):
                old, new = (changes or {})[path.name]
                if text.count(old) != 1:
                    raise ValueError(f"{old!r} occurs {text.count(old)} times in {path.name}, expected once")
                text = text.replace(old, new)
            (folder / path.name).write_text(text)
        sources = [folder / "rows.cpp", folder / "dispatch.cpp", folder / "solve.cpp"]
        sources.append(Path(__file__).with_name("driver.cpp"))
        command = [*_compiler(), *_FLAGS, *SANITIZERS[sanitizer], *INSTRUCTIONS[instructions], f"-I{folder}"]
        subprocess.run([*command, *map(str, sources), "-o", str(folder / "driver")], check=True)
        return subprocess.run([str(folder / "driver")], capture_output=True, text=True)


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
            done = run(sanitizer, instructions)
            failed |= bool(done.returncode)
            print(
                f"{sanitizer:8} {instructions:10} {'failed' if done.returncode else 'silent'}: {done.stdout.strip()}"
            )
            print(done.stderr[-3000:], end="", flush=True)
    sys.exit(failed)
