"""Compiles the kernels for a GPU that is not there, and reads what the machine code needs.

`compile` specialises a launch on its arguments exactly as Triton does when it runs, so tensors of the
device "meta" are enough. It needs kernels that are compiled, not interpreted: a process in which
TRITON_INTERPRET is not set.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature

from .launches import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Resources:
    """What one variant of a kernel takes of a multiprocessor.

    Attributes:
        registers: of a thread.
        shared: bytes of a block.
        threads: of a block.
        spills: bytes of local memory (stack included) a thread.
        wide_loads, wide_stores: global accesses of 16 bytes a thread; other_loads, other_stores: the rest.
    """

    registers: int
    shared: int
    threads: int
    spills: int
    wide_loads: int = 0
    wide_stores: int = 0
    other_loads: int = 0
    other_stores: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def compile(launch: Launch, target: str) -> tuple[Resources, str]:
    """Compile a launch for one of `TARGETS`: what it needs, and its machine code as text."""
    return read(compiled_kernel(launch, target), launch, target)


def read(compiled: Any, launch: Launch, target: str) -> tuple[Resources, str]:
    """What Triton's compiled kernel of a launch needs, and its machine code as text."""
    warp_size = TARGETS[target].warp_size
    threads = launch.options(warp_size)["num_warps"] * warp_size
    if target.startswith("sm_"):
        return _nvidia(compiled.asm["cubin"], compiled.metadata.shared, threads)
    return _amd(compiled.asm["amdgcn"], threads)


def compiled_kernel(launch: Launch, target: str):
    """Triton's own compiled kernel, from its cache where it has been compiled before."""
    source, options = _source(launch, target)
    return triton.compile(source, target=TARGETS[target], options=options)


def variant(launch: Launch, target: str) -> str:
    """What tells variants apart: two launches with the same answer run the same machine code."""
    source, options = _source(launch, target)
    return f"{source.hash()} {sorted((name, str(value)) for name, value in options.items())}"


def _source(launch: Launch, target: str) -> tuple[ASTSource, dict[str, Any]]:
    """What Triton compiles for a launch, and with which options."""
    kernel, gpu = launch.kernel, TARGETS[target]
    if not hasattr(kernel, "_pack_args"):
        raise RuntimeError(
            "the kernels are interpreted in this process; unset TRITON_INTERPRET before emosteer.kernels is imported"
        )
    backend = make_backend(gpu)
    options = launch.options(gpu.warp_size) | {"debug": False}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(**launch.arguments, **launch.constants_on(gpu.backend), **options)
    parsed, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, None
    )
    return ASTSource(kernel, signature, constants, attributes), parsed.__dict__


def _nvidia(cubin: bytes, shared: int, threads: int) -> tuple[Resources, str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return (
        Resources(
            registers=found["REG"],
            shared=shared,
            threads=threads,
            spills=found["STACK"] + found["LOCAL"],
            **_accesses(code),
        ),
        code,
    )


def _accesses(code: str) -> dict[str, int]:
    loads = re.findall(r"\bLDG(?:STS)?((?:\.[A-Z0-9_]+)*)\s", code)
    stores = re.findall(r"\bSTG((?:\.[A-Z0-9_]+)*)\s", code)
    wide = [sum(bool(re.search(r"\.(128|256)\b", m)) for m in found) for found in (loads, stores)]
    return {
        "wide_loads": wide[0],
        "wide_stores": wide[1],
        "other_loads": len(loads) - wide[0],
        "other_stores": len(stores) - wide[1],
    }


def _amd(code: str, threads: int) -> tuple[Resources, str]:
    def number(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", code)
        if match is None:
            raise RuntimeError(f"the compiler's output names no .{name}")
        return int(match.group(1))

    loads = re.findall(r"\b(?:global|buffer)_load_(\w+)", code)
    stores = re.findall(r"\b(?:global|buffer)_store_(\w+)", code)
    wide = [sum("dwordx4" in m for m in found) for found in (loads, stores)]
    return (
        Resources(
            registers=number("vgpr_count"),
            shared=number("group_segment_fixed_size"),
            threads=threads,
            spills=number("private_segment_fixed_size") + number("vgpr_spill_count"),
            wide_loads=wide[0],
            wide_stores=wide[1],
            other_loads=len(loads) - wide[0],
            other_stores=len(stores) - wide[1],
        ),
        code,
    )


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{tool} failed: {done.stderr.strip()}")
    return done.stdout
