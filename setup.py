"""Builds the compiled modules. No torch header is included, so one build serves every torch.

`emosteer._cpu` needs a C++17 compiler. `emosteer._cuda` is built as well where nvcc is found;
EMOSTEER_CUDA=0 leaves it out and EMOSTEER_CUDA=1 insists on it. EMOSTEER_BUILD=0 compiles nothing, for an
editable installation whose modules lie in the tree already or are built in a step of their own. EMOSTEER_WERROR=1
makes an error of every warning, as continuous integration does.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent

NO_COMPILER = """
emosteer needs a C++ compiler and could not run {compiler!r}: {reason}
Install one and try again:
    Debian, Ubuntu:  apt-get install g++
    Fedora, RHEL:    dnf install gcc-c++
    conda:           conda install -c conda-forge cxx-compiler
or point the environment variable CXX at yours.
"""

# The row kernels are compiled once for each; the fastest one that the machine has is chosen at import.
AVX2 = ["-mavx2", "-mfma", "-mf16c", "-mbmi2"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]
# GCC 12 warns of its own AVX-512 header, whose "undefined" values are meant; baseline and AVX2 keep the warnings.
AVX512 += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
X86_ISAS = {"avx2": AVX2, "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}
COMMON = [
    "-std=c++17",
    "-O3",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-fvisibility=hidden",
]
STRICT = os.environ.get("EMOSTEER_WERROR") == "1"
if STRICT:
    COMMON.append("-Werror")
ROW_HEADERS = [f"csrc/cpu/{name}.hpp" for name in ("rows", "solve", "lanes", "row_loops", "steer_row")]
X86 = platform.machine().lower() in ("x86_64", "amd64")

# Machine code for these, and for what comes later the PTX of the last: a driver compiles it at the first use.
CUDA_ARCHITECTURES = ("80", "90", "100")


def check_compiler() -> None:
    """Fails with what to install rather than with a compiler's own words."""
    compiler = os.environ.get("CXX", "g++" if shutil.which("g++") else "c++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(
            "#include <omp.h>\n#include <vector>\nint main() { return omp_get_max_threads() < 1; }\n"
        )
        command = [*compiler.split(), "-std=c++17", "-fopenmp", str(source), "-o", str(Path(folder, "probe"))]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            sys.exit(NO_COMPILER.format(compiler=compiler, reason=error.strerror))
        if done.returncode:
            sys.exit(NO_COMPILER.format(compiler=compiler, reason=done.stderr.strip()[-500:]))
    os.environ.setdefault("CXX", compiler)


class BuildExt(build_ext):
    """Compiles csrc/cpu/rows.cpp once per instruction set and links all of them into one module."""

    def build_extensions(self) -> None:
        check_compiler()
        self.compiler.set_executable("compiler_so_cxx", [*os.environ["CXX"].split(), "-fPIC"])
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        if ext.name == "emosteer._cuda":
            return self.cuda_kernels(ext)
        if ext.name == "emosteer._cpu":
            ext.extra_objects = self.row_kernels()
        super().build_extension(ext)

    def row_kernels(self) -> list[str]:
        isas = {"baseline": [], **(X86_ISAS if X86 else {})}
        objects = []
        for isa, flags in isas.items():
            objects += self.compiler.compile(
                ["csrc/cpu/rows.cpp"],
                output_dir=os.path.join(self.build_temp, isa),
                macros=[("EMOSTEER_ISA", isa)],
                extra_postargs=[*COMMON, *flags],
                depends=ROW_HEADERS,
            )
        return objects

    def cuda_kernels(self, ext: Extension) -> None:
        """Compiles and links with nvcc alone, which knows where its own runtime lies."""
        nvcc = find_nvcc()
        if nvcc is None:
            raise CompileError(
                "EMOSTEER_CUDA=1 asks for emosteer._cuda and there is no nvcc; install a CUDA toolkit"
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
        architectures = [a for a in CUDA_ARCHITECTURES if f"sm_{a}" in known.split()]
        if not architectures:
            raise CompileError(
                f"{nvcc} compiles for none of sm_{', sm_'.join(CUDA_ARCHITECTURES)}; it needs CUDA 11"
            )
        command = [
            nvcc,
            *os.environ.get("NVCC_FLAGS", "").split(),
            "-shared",
            "-std=c++17",
            "-O3",
            "--threads=0",
        ]
        command += [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures[:-1]]
        command += ["-gencode=arch=compute_{0},code=[sm_{0},compute_{0}]".format(architectures[-1])]
        command += ["--cudart=static", "--compiler-options=-fPIC,-fvisibility=hidden,-Wall"]
        command += ["--Werror=all-warnings"] if STRICT else []
        command += [
            "--linker-options=--exclude-libs,ALL,--strip-all",
            f"--compiler-bindir={os.environ['CXX'].split()[-1]}",
        ]
        command += [f"-I{folder}" for folder in [*ext.include_dirs, *self.include_dirs]]
        command += ext.extra_compile_args
        done = subprocess.run([*command, *ext.sources, "-o", str(target)], capture_output=True, text=True)
        if done.returncode:
            raise CompileError(f"{nvcc} failed:\n{done.stderr[-3000:]}")


def find_nvcc() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    return shutil.which("nvcc") or next(
        (found for home in homes if home and (found := shutil.which("nvcc", path=f"{home}/bin"))), None
    )


def cuda_module() -> list[Extension]:
    """The module of CUDA kernels, where it is asked for or nvcc is found."""
    import pybind11

    wish = os.environ.get("EMOSTEER_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"EMOSTEER_CUDA must be 0 (leave out emosteer._cuda) or 1 (insist on it), got {wish!r}")
    if wish == "0" or (not wish and find_nvcc() is None):
        return []
    return [
        Extension(
            "emosteer._cuda",
            ["csrc/cuda/launch.cu", "csrc/cuda/bindings.cpp"],
            include_dirs=["kernels/cuda", "csrc/cuda"],
            extra_compile_args=["-isystem", pybind11.get_include()],
            depends=[str(path) for path in (*ROOT.glob("kernels/cuda/*"), ROOT / "csrc/cuda/launch.hpp")],
            optional=wish
            != "1",  # a toolkit that does not fit the compiler must not keep the rest from building
            language="c++",
        )
    ]


def cpu_module() -> Extension:
    import pybind11

    return Extension(
        "emosteer._cpu",
        ["csrc/cpu/bindings.cpp", "csrc/cpu/dispatch.cpp", "csrc/cpu/solve.cpp"],
        include_dirs=["csrc/cpu"],
        depends=[*ROW_HEADERS, "csrc/cpu/shares.hpp", "csrc/cpu/rows.cpp"],
        define_macros=[("EMOSTEER_X86", "1")] if X86 else [],
        extra_compile_args=[*COMMON, "-isystem", pybind11.get_include()],
        extra_link_args=["-fopenmp"],
        language="c++",
    )


modules = [] if os.environ.get("EMOSTEER_BUILD") == "0" else [cpu_module(), *cuda_module()]
setup(ext_modules=modules, cmdclass={"build_ext": BuildExt})
