"""The row update on a stream in two parts, against the definition: any rows, layers, units and dtypes."""

import json
import os
import re
import struct
import subprocess
import sys

import pytest
import torch

import emosteer as es
from emosteer.models.table_rows import packed
from emosteer.ops import SteerTable, reference
from emosteer.vllm import read_operator
from emosteer.vllm.operator import on_gpu, steer_stream_, traced
from emosteer.vllm.read_operator import read_stream_

SLOTS, WIDTH = 3, 48
NAMES = ["a", "b", "c", "d"]
PROGRAMS = [
    (es.add("a", 1.5), 1, 0b01),
    (es.cap("b", 0.1) + es.floor("c", 0.2), 2, 0b11),
    (es.rotate("d", 40) + es.add("a", -1), 1, 0b10),
    (es.add("c", 0.5, preserve_norm=False), 0, 0b01),
    (es.cap("a", 100.0), 1, 0b11),  # changes nothing
]
UNITS = torch.tensor([1.0, 2.0, 5.0])


def rows():
    words = 5 * SLOTS + 1
    found = torch.zeros(len(PROGRAMS) + 1, 32, dtype=torch.int32)
    SteerTable.of_record(found, SLOTS).clear_()
    for k, (program, unit, bits) in enumerate(PROGRAMS):
        data = packed(program, SLOTS, NAMES.index, preserve_norm=True, relative=unit == 0)
        data += struct.pack("2I", unit, bits)
        found[k, : words + 2] = torch.frombuffer(bytearray(data), dtype=torch.int32)
    return found, words


def wanted(hidden, residual, directions, token_row, layer):
    """float64 `[N, D]`: the stream, by the definition, token by token."""
    table = SteerTable.of_record(rows()[0], SLOTS)
    x = hidden if residual is None else hidden + residual
    out = x.double()
    for n, row in enumerate(token_row.tolist()):
        if row >= 0 and PROGRAMS[row][2] >> layer & 1:
            at = torch.tensor([row])
            scale = float(UNITS[PROGRAMS[row][1]])
            out[n] = reference.steer(x[n : n + 1].double(), directions.double(), table, at, scale)[0]
    return out


@pytest.mark.parametrize("form", ["operator", "traced", "triton"])
@pytest.mark.parametrize("two", [True, False], ids=["hidden and residual", "one tensor"])
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_the_definition(dtype, layer, two, form):
    generator = torch.Generator().manual_seed(layer)
    hidden = torch.randn(17, WIDTH, generator=generator).to(dtype)
    residual = torch.randn(17, WIDTH, generator=generator).to(dtype) if two else None
    directions = torch.nn.functional.normalize(torch.randn(4, WIDTH, generator=generator), dim=1)
    table, word = rows()
    place = torch.tensor([word, word + 1, layer], dtype=torch.int32)
    token_row = torch.full((20,), -1, dtype=torch.int32)
    token_row[:15] = torch.arange(15) % (len(PROGRAMS) + 1) - 1
    before = hidden.clone()
    if form == "operator":
        steer_stream_(hidden, residual, directions, table, place, UNITS, token_row, SLOTS)
    elif form == "traced":
        hidden = traced(hidden, residual, directions, table, place, UNITS, token_row, SLOTS)
    else:  # in Triton's interpreter
        stream = pytest.importorskip("emosteer.kernels.stream")
        views = table, table.view(torch.float32), table.view(torch.uint8)
        rest = hidden, residual, directions, *views, place, UNITS, token_row, SLOTS
        assert stream.launch(*rest) is not None  # or the formula would be tested again
        on_gpu(hidden, residual, directions, table, place, UNITS, token_row, SLOTS)
    want = wanted(before, residual, directions, token_row[:17], layer)
    found = hidden if residual is None else hidden + residual
    eps = torch.finfo(dtype).eps
    assert float((found.double() - want).abs().max()) <= 8 * eps * float(want.abs().max())
    acts = torch.tensor(
        [row >= 0 and PROGRAMS[row][2] >> layer & 1 for row in token_row[:17].tolist()]
    ).bool()
    idle = ~acts | (token_row[:17] == 4)  # not in reach, or a cap that holds nothing
    assert torch.equal(hidden[idle], before[idle])
    stream = before if residual is None else before + residual
    assert torch.equal((hidden != before).any(1), (want != stream.double()).any(1))


@pytest.mark.parametrize("form", ["operator", "elsewhere", "triton"])
@pytest.mark.parametrize("two", [True, False], ids=["hidden and residual", "one tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_read_are_projections_of_the_rounded_stream(dtype, two, form):
    """For tokens that are read; the rows of others keep what they hold, and the stream its bits."""
    hidden, residual = torch.randn(9, WIDTH).to(dtype), torch.randn(9, WIDTH).to(dtype) if two else None
    directions = torch.nn.functional.normalize(torch.randn(5, WIDTH), dim=1)
    reading = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 1], dtype=torch.int32)  # two of padding
    values, before = torch.full((11, 5), 7.0), hidden.clone()
    if form == "operator":
        read_stream_(hidden, residual, directions, reading, values)
    elif form == "elsewhere":
        read_operator._elsewhere(hidden, residual, directions, reading, values)
    else:  # in Triton's interpreter
        kernel = pytest.importorskip("emosteer.kernels.read_stream")
        assert kernel.launch(hidden, residual, directions, reading, values) is not None
        read_operator.on_gpu(hidden, residual, directions, reading, values)
    x = before if residual is None else before + residual
    wanted = torch.full((11, 5), 7.0, dtype=torch.float64)
    wanted[:9][reading[:9] != 0] = (x.double() @ directions.double().T)[reading[:9] != 0]
    assert torch.allclose(values.double(), wanted, atol=1e-5)
    assert torch.equal(hidden, before)
    with pytest.raises(ValueError, match="reading has 3 entries, a pass of 9 tokens"):
        read_stream_(hidden, residual, directions, reading[:3], values)


def test_all_tokens_of_one_unit_and_none():
    """The two ends that have their own way through the operator."""
    table, word = rows()
    place = torch.tensor([word, word + 1, 0], dtype=torch.int32)
    directions = torch.nn.functional.normalize(torch.randn(4, WIDTH), dim=1)
    hidden, residual = torch.randn(5, WIDTH), torch.randn(5, WIDTH)
    before = hidden.clone()
    steer_stream_(
        hidden, residual, directions, table, place, UNITS, torch.full((5,), -1, dtype=torch.int32), SLOTS
    )
    assert torch.equal(hidden, before)
    every = torch.zeros(5, dtype=torch.int32)
    steer_stream_(hidden, residual, directions, table, place, UNITS, every, SLOTS)
    want = wanted(before, residual, directions, every, 0)
    assert torch.allclose((hidden + residual).double(), want, atol=1e-5)


def test_a_pass_that_is_longer_than_the_engine_said():
    table, word = rows()
    place = torch.tensor([word, word + 1, 0], dtype=torch.int32)
    short = torch.full((4,), -1, dtype=torch.int32)
    for run in (steer_stream_, on_gpu):
        with pytest.raises(ValueError, match="token_row has 4 entries, a pass of 5 tokens"):
            run(torch.zeros(5, WIDTH), None, torch.eye(4, WIDTH), table, place, UNITS, short, SLOTS)


def test_a_compiler_puts_it_back_in_place(monkeypatch):
    """Functionalised as vLLM has it and lowered by Inductor, it writes into what the block computed: no copy.

    Readings are written into their buffer.
    """
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    monkeypatch.setattr(config, "enable_auto_functionalized_v2", False)
    table, word = rows()
    place = torch.tensor([word, word + 1, 0], dtype=torch.int32)
    directions = torch.nn.functional.normalize(torch.randn(4, WIDTH), dim=1)
    token_row = torch.tensor([0, -1, 3], dtype=torch.int32)
    weight = torch.randn(WIDTH, WIDTH)
    reading, values = torch.tensor([1, 0, 1], dtype=torch.int32), torch.zeros(3, 4)

    def block(x, residual):
        hidden = torch.relu(x) @ weight
        steer_stream_(hidden, residual, directions, table, place, UNITS, token_row, SLOTS)
        read_stream_(hidden, residual, directions, reading, values)
        stream = hidden + residual
        return stream * torch.rsqrt(stream.square().mean(-1, keepdim=True) + 1e-6), stream

    x, residual = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    with torch.no_grad():
        compiled, code = run_and_get_code(torch.compile(block, fullgraph=True), x, residual)
        written = values.clone()
        assert torch.allclose(compiled[0], block(x, residual)[0], atol=1e-5)
    assert torch.allclose(written, values, atol=1e-5)
    assert written[0].abs().min() > 0
    assert re.search(r"read_stream_\.default\(buf\d+, arg\w+, arg\w+, arg\w+, arg\w+\)", code[0])
    assert re.search(r"out=(buf\d+)\)(?:(?!empty_strided).)*steer_stream_\.default\(\1,", code[0], re.DOTALL)


COMPILED = """
import json, torch
from emosteer.kernels import stream
from emosteer.kernels.offline import compile

found = {}
for dtype in (torch.bfloat16, torch.float32):
    for slots in (1, 4):
        for dim in (4096, 8192):
            make = lambda *shape, dtype=torch.int32: torch.empty(*shape, dtype=dtype, device="meta")
            hidden, residual = make(8, dim, dtype=dtype), make(8, dim, dtype=dtype)
            directions, rows = make(171, dim, dtype=torch.float32), make(64, 32)
            views = rows, rows.view(torch.float32), rows.view(torch.uint8)
            units = make(2, dtype=torch.float32)
            launch = stream.launch(hidden, residual, directions, *views, make(3), units, make(8), slots)
            found[f"{dtype} {slots} {dim}"] = compile(launch, "sm_90")[0].as_dict()
print(json.dumps(found))
"""


def test_its_kernel_keeps_a_row_in_the_registers_of_a_gpu():
    """Compiled for an H100 that is not there: nothing spilled, the row moved 16 bytes at a time."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    for variant, facts in json.loads(done.stdout).items():
        assert facts["spills"] == 0, (variant, facts)
        assert facts["wide_loads"] >= 2, (variant, facts)
        assert facts["wide_stores"] >= 1, (variant, facts)
