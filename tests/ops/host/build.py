"""Compiles the CUDA kernels and their launchers for this machine's processor, with g++ and the shim beside this file.

What is compiled are the very files of `kernels/cuda` and `csrc/cuda`; only `cuda_runtime.h` is ours. The
number formats come from NVIDIA's own headers: a toolkit's, or those of the package nvidia-cuda-runtime.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

from .changes import HEADER, Changes, changed

HOST = Path(__file__).parent
ROOT = HOST.parents[2]
KERNELS, LAUNCHERS = ROOT / "kernels" / "cuda", ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "host"
NAME = "cuda_host"
SANITIZE = (
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
)
FLAGS = (
    "-std=c++17",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-Wall",
    "-Wno-attributes",
    "-Wno-unknown-pragmas",
    "-Wno-class-memaccess",
    f"-DEMOSTEER_MODULE={NAME}",
    '-DEMOSTEER_DEVICE="cpu"',
)


def cuda_headers() -> Path:
    """The folder that has `cuda_bf16.h`."""
    found = []
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        found += [*sorted(Path(place).glob("cu*/include")), Path(place) / "cuda_runtime" / "include"]
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home:
            found.append(Path(home) / "include")
    if nvcc := shutil.which("nvcc"):
        found.append(Path(nvcc).resolve().parents[1] / "include")
    for folder in found:
        if (folder / "cuda_bf16.h").exists() and (folder / "cuda_runtime_api.h").exists():
            return folder
    raise FileNotFoundError(
        "cuda_bf16.h is neither in the package nvidia-cuda-runtime nor in a CUDA toolkit; "
        "pip install nvidia-cuda-runtime"
    )


def built(*, flags: tuple[str, ...] = ("-O2",), changes: Changes | None = None) -> Path:
    """The compiled module, from the cache where nothing changed.

    Args:
        flags: of the kernels, beside those that every build has.
        changes: to files of `kernels/cuda`: planted bugs.
    """
    kernels = {p.name: changed(p.name, p.read_text(), changes or {}) for p in KERNELS.glob("*.cuh")}
    including = ("-include", str(HEADER)) if changes else ()
    folder = CACHE / f"kernels-{_digest(kernels)}"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in kernels.items():
        if not (folder / name).exists():
            _whole(folder / name, lambda part, text=text: part.write_text(text))

    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(_object, source, folder, flags_of_it)
            for source, flags_of_it in (
                (LAUNCHERS / "launch.cu", (*flags, *including)),
                (LAUNCHERS / "bindings.cpp", ("-O1",)),
                (HOST / "fibers.cpp", flags),
            )
        ]
        objects = [str(job.result()) for job in jobs]
    module = CACHE / f"module-{_digest(objects)}" / f"{NAME}.so"
    if not module.exists():
        module.parent.mkdir(exist_ok=True)
        _whole(module, lambda part: _run([*_compiler(), "-shared", *flags, *objects, "-o", str(part)]))
    return module


def _object(source: Path, kernels: Path, flags: tuple[str, ...]) -> Path:
    command = [*_compiler(), *FLAGS, *flags]
    command += [f"-I{path}" for path in (HOST / "include", HOST, kernels, LAUNCHERS)]
    for path in (cuda_headers(), pybind11.get_include(), sysconfig.get_path("include")):
        command += ["-isystem", str(path)]
    own = [source, *LAUNCHERS.glob("*.hpp"), *HOST.rglob("*.h*"), HOST / "include" / "nv" / "target"]
    if source.suffix == ".cpp":  # of the kernels only the arguments
        command = [part for part in command if part != f"-I{kernels}"] + [f"-I{KERNELS}"]
        own.append(KERNELS / "args.cuh")
    target = (
        CACHE / f"{source.stem}-{_digest([command, sys.version, [p.read_text() for p in sorted(own)]])}.o"
    )
    if not target.exists():
        _whole(target, lambda part: _run([*command, "-x", "c++", "-c", str(source), "-o", str(part)]))
    return target


def _compiler() -> list[str]:
    return os.environ.get("CXX", "g++").split()


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()[:20]


def _whole(path: Path, write) -> None:
    """A file is there whole or not at all, whoever else makes it meanwhile."""
    part = path.with_name(f"{os.getpid()}-{path.name}")
    write(part)
    part.replace(path)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def load(path: Path) -> ModuleType:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
