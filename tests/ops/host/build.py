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
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

HOST = Path(__file__).parent
ROOT = HOST.parents[2]
KERNELS, LAUNCHERS = ROOT / "kernels" / "cuda", ROOT / "csrc" / "cuda"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
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
)


def cuda_headers() -> Path:
    """The folder that has `cuda_bf16.h`."""
    found = []
    if nvcc := shutil.which("nvcc"):
        found.append(Path(nvcc).resolve().parents[1] / "include")
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home:
            found.append(Path(home) / "include")
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec else ():
        found += sorted(Path(place).glob("cu*/include")) + [Path(place) / "cuda_runtime" / "include"]
    for folder in found:
        if (folder / "cuda_bf16.h").exists():
            return folder
    raise FileNotFoundError(
        "cuda_bf16.h is neither in a CUDA toolkit nor in the package nvidia-cuda-runtime; "
        "pip install nvidia-cuda-runtime"
    )


def built(
    name: str = "cuda_host", *, flags: tuple[str, ...] = ("-O2",), changes: Mapping[str, tuple[str, str]] = {}
) -> Path:
    """The compiled module, from the cache where nothing changed.

    Args:
        name: of the module.
        flags: beside those that every build has.
        changes: by file of `kernels/cuda`, a text that occurs once in it and what to put instead: a planted bug.
    """
    sources = sorted(
        [*KERNELS.glob("*.cuh"), *LAUNCHERS.glob("*"), *HOST.rglob("*.[ch]*"), HOST / "include/nv/target"]
    )
    texts = {path: path.read_text() for path in sources}
    for file, (old, new) in changes.items():
        text = texts[KERNELS / file]
        if text.count(old) != 1:
            raise ValueError(f"{old!r} occurs {text.count(old)} times in {file}, expected once")
        texts[KERNELS / file] = text.replace(old, new)
    compiler = os.environ.get("CXX", "g++").split()
    key = hashlib.sha256(repr((name, flags, FLAGS, sys.version, compiler, str(cuda_headers()))).encode())
    for path, text in texts.items():
        key.update(f"{path}\n{text}".encode())
    folder = ROOT / "build" / "host" / f"{name}-{key.hexdigest()[:16]}"
    module = folder / f"{name}.so"
    if not module.exists():
        folder.mkdir(parents=True, exist_ok=True)
        for path in KERNELS.glob("*.cuh"):
            (folder / path.name).write_text(texts[path])
        _compile(compiler, folder, module, (f"-DEMOSTEER_MODULE={name}", '-DEMOSTEER_DEVICE="cpu"', *flags))
    return module


def _compile(compiler: list[str], folder: Path, module: Path, flags: tuple[str, ...]) -> None:
    includes = [HOST / "include", HOST, folder, LAUNCHERS]
    command = [*compiler, *FLAGS, *flags, *(f"-I{path}" for path in includes)]
    for path in (cuda_headers(), pybind11.get_include(), sysconfig.get_path("include")):
        command += ["-isystem", str(path)]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.{os.getpid()}.o"
        _run([*command, "-x", "c++", "-c", str(source), "-o", str(target)])
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(
            pool.map(compile_one, [LAUNCHERS / "launch.cu", LAUNCHERS / "bindings.cpp", HOST / "fibers.cpp"])
        )
    partial = module.with_suffix(f".{os.getpid()}.so")
    _run([*compiler, "-shared", *flags, *map(str, objects), "-o", str(partial)])
    partial.replace(module)  # whole or not at all, whoever else builds it meanwhile
    for path in objects:
        path.unlink()


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def load(path: Path) -> ModuleType:
    """The module in a file, whose name is the module's."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
