"""What the CUDA kernels take of a multiprocessor, read from the compiled module: no GPU is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from . import cuda_module

OPS = ("steer", "steer_rms_norm", "rms_norm", "project")
DTYPES = ("float32", "bfloat16", "float16")

_TYPES = {"f": "float32", "13__nv_bfloat16": "bfloat16", "6__half": "float16"}
_KERNEL = re.compile(r"\d(steer|rms_norm|project)_kernelI(f|13__nv_bfloat16|6__half)(Lb1E)?(?:Lb0E)?E")
# Every block is charged this much beside what it asks for, since compute capability 8.0.
_SYSTEM_SHARED = 1024


@dataclass(frozen=True)
class Resources:
    """What one call of a kernel takes.

    Attributes:
        registers: of a thread.
        shared: bytes of a block, the system's 1024 included.
        threads: of a block.
        rows_per_block: rows of `x` that a block takes.
        local: bytes of local memory of a thread (stack and spills).
    """

    registers: int
    shared: int
    threads: int
    rows_per_block: int
    local: int


def resources(op: str, dtype: str, dim: int, *, slots: int = 1, architecture: str = "sm_90") -> Resources:
    """The resources of the kernel of `op` for rows of `dim` columns.

    Args:
        op: one of `OPS`.
        dtype: one of `DTYPES`.
        dim: columns of a row.
        slots: of the table (steering only).
        architecture: one for which the module has machine code, e.g. "sm_90".

    Raises:
        ValueError: an unknown operation, dtype or architecture, or rows too wide for these kernels.
        RuntimeError: the module is not built, or `cuobjdump` is missing.
    """
    known = usage(architecture)
    if (op, dtype) not in known:
        raise ValueError(f"op must be one of {OPS} and dtype one of {DTYPES}, got {op!r} and {dtype!r}")
    registers, local = known[op, dtype]
    steers = op.startswith("steer")
    threads, rows, shared = cuda_module.load().shape(dim, slots if steers else 0)
    return Resources(registers, shared + _SYSTEM_SHARED, threads * rows, rows, local)


@lru_cache
def architectures() -> tuple[str, ...]:
    """The architectures for which the module has machine code."""
    found = set(re.findall(r"\.(sm_\d+)\.cubin", _dump("--list-elf")))
    return tuple(sorted(found, key=lambda name: int(name[3:])))


@lru_cache
def usage(architecture: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Registers and bytes of local memory of a thread, by operation and dtype."""
    if architecture not in architectures():
        raise ValueError(
            f"architecture must be one of {', '.join(architectures())}, for which emosteer._cuda was built, "
            f"got {architecture!r}"
        )
    found = {}
    parts = re.split(r"Function (\S+):", _dump("--dump-resource-usage", "--gpu-architecture", architecture))
    for name, numbers in zip(parts[1::2], parts[2::2]):
        if kernel := _named(name):
            values = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", numbers))
            found[kernel] = int(values["REG"]), int(values["STACK"]) + int(values["LOCAL"])
    return found


def machine_code(architecture: str) -> dict[tuple[str, str], str]:
    """The instructions of each kernel, by operation and dtype."""
    parts = re.split(r"Function : (\S+)", _dump("--dump-sass", "--gpu-architecture", architecture))
    return {kernel: code for name, code in zip(parts[1::2], parts[2::2]) if (kernel := _named(name))}


def _named(symbol: str) -> tuple[str, str] | None:
    if (match := _KERNEL.search(symbol)) is None:
        return None
    op, dtype, normed = match.groups()
    return op + ("_rms_norm" if normed else ""), _TYPES[dtype]


def _dump(*options: str) -> str:
    module = str(cuda_module.load().__file__)  # before the tool: without kernels none is needed
    done = subprocess.run([_cuobjdump(), *options, module], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cuobjdump {' '.join(options)} failed: {done.stderr.strip()}")
    return done.stdout


def _cuobjdump() -> str:
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    if (triton := find_spec("triton")) is not None and triton.origin:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    path = os.pathsep.join([os.environ.get("PATH", ""), *map(str, folders)])
    if (found := shutil.which("cuobjdump", path=path)) is None:
        raise RuntimeError("cuobjdump is missing; it comes with the CUDA toolkit and with pip install triton")
    return found
