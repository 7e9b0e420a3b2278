"""The machine code of the CUDA kernels, read without a GPU."""

import re
import shutil

import pytest

from emosteer.ops import cuda_resources
from emosteer.ops.cuda_resources import DTYPES, OPS, resources

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
REGISTERS = 65536  # of a multiprocessor, on all of these
# Threads that a multiprocessor holds at once, as the table of `emosteer bench static` claims.
RESIDENT = {"steer": 512, "steer_rms_norm": 512, "rms_norm": 1024, "project": 1024}
# 16-byte packets of one thread: a row of 16 elements, and 16 float32 of a direction or weight.
PACKETS = {"float32": 4, "bfloat16": 2, "float16": 2}
# Elements of a row that a thread keeps, and the accesses that take one of them.
ELEMENTS, ONE = 16, {"float32": ".E", "bfloat16": ".E.U16", "float16": ".E.U16"}


@pytest.fixture(autouse=True, scope="module")
def compiled():
    try:
        cuda_resources.architectures()
    except RuntimeError as error:
        if "emosteer._cuda" in str(error) and shutil.which("nvcc"):
            pytest.fail(f"nvcc is here and yet {error}")
        pytest.skip(str(error))


def test_every_kernel_for_every_architecture():
    assert cuda_resources.architectures() == ARCHITECTURES
    for architecture in ARCHITECTURES:
        assert set(cuda_resources.usage(architecture)) == {(op, dtype) for op in OPS for dtype in DTYPES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_registers_and_no_local_memory(op, dtype, architecture):
    for dim in (64, 576, 4096, 8192):
        found = resources(op, dtype, dim, slots=8, architecture=architecture)
        assert found.local == 0
        assert found.registers <= REGISTERS // RESIDENT[op]
        assert found.threads <= 512
        assert found.shared <= 48 * 1024 + 1024


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_accesses_are_wide_and_global(architecture):
    """No local load or store, no generic one, and 16 bytes at a time where rows are aligned."""
    for (op, dtype), code in cuda_resources.machine_code(architecture).items():
        accesses = re.findall(r"\b(LDG|STG|LDL|STL|LD|ST)((?:\.[A-Z0-9_]+)*)\s", code)
        assert {kind for kind, _ in accesses} == {"LDG", "STG"}, (op, dtype)
        wide = {kind: sum(".128" in how for k, how in accesses if k == kind) for kind in ("LDG", "STG")}
        of_row, of_floats = PACKETS[dtype], 4
        assert wide["LDG"] >= of_row + of_floats, (op, dtype)
        if op != "project":  # its result is a number a direction
            assert wide["STG"] >= of_row * (2 if op == "steer_rms_norm" else 1), (op, dtype)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_that_are_not_aligned(architecture):
    """Beside the accesses of 16 bytes stands a path that takes every element of a row by itself, and no third."""
    for (op, dtype), code in cuda_resources.machine_code(architecture).items():
        found = {kind: re.findall(rf"\b{kind}((?:\.[A-Z0-9_]+)*)\s", code) for kind in ("LDG", "STG")}
        assert found["LDG"].count(ONE[dtype]) >= ELEMENTS, (op, dtype)
        if op != "project":
            assert found["STG"].count(ONE[dtype]) >= ELEMENTS, (op, dtype)
            assert set(found["STG"]) == {ONE[dtype], ".E.128"}, (op, dtype)


def test_shapes():
    assert resources("steer", "bfloat16", 512).rows_per_block == 4
    assert resources("steer", "bfloat16", 513).rows_per_block == 1
    assert resources("steer", "bfloat16", 4096).threads == 256
    assert resources("rms_norm", "float32", 8192).threads == 512


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("steal", "float32", 64), "op must be one of"),
        (("steer", "float64", 64), "dtype one of"),
        (("steer", "float32", 8193), "8193 columns, the cuda backend takes 1 to 8192"),
    ],
)
def test_unknown(arguments, message):
    with pytest.raises(ValueError, match=message):
        resources(*arguments)
    with pytest.raises(ValueError, match="architecture must be one of sm_80, sm_90, sm_100"):
        resources("steer", "float32", 64, architecture="sm_70")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_weight_is_asked_for_before_the_sums(architecture):
    code = cuda_resources.machine_code(architecture)
    for dtype in DTYPES:
        fused = code["steer_rms_norm", dtype]
        assert 0 <= fused.find("CCTL.E.PF2") < fused.find("BAR.SYNC")
        assert "CCTL" not in code["steer", dtype]
