"""A steered model exported with its table as an input, run where emosteer is not."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import emosteer as es

from ...patience import PATIENCE
from ..conftest import padded

ROOT = Path(__file__).parents[3]
IDS, MASK = padded([[5, 6, 7, 8], [9, 10, 11]])
INPUTS = {"input_ids": IDS, "attention_mask": MASK, "position_ids": (MASK.cumsum(1) - 1).clamp(min=0)}
PROGRAMS = {"idle": None, "calm": es.add("calm", 0.4), "capped": es.cap("angry", 0.0) + es.add("weary", 0.2)}
RUN = """
import sys, torch
folder, *names = sys.argv[1:]
program = torch.export.load(folder + "/steered.pt2").module()
inputs = torch.load(folder + "/inputs.pt", weights_only=True)
found = {n: program(torch.load(f"{folder}/{n}.table.pt", weights_only=True), **inputs) for n in names}
assert "emosteer" not in sys.modules and "transformers" not in sys.modules
torch.save(found, folder + "/found.pt")
"""


@torch.no_grad()
def logits(model):
    return model(**INPUTS, use_cache=False).logits


@pytest.fixture
def exported(model, bank, tmp_path, request):
    """Steered everywhere with room for two directions, or where `parametrize` says."""
    where = {"layers": getattr(request, "param", "all"), "slots": 2}
    export = runpy.run_path(str(ROOT / "examples" / "export_steered.py"))["export"]
    expected = {}
    for name, program in PROGRAMS.items():
        with es.steer(model, bank, [program, None], positions=slice(1, None), **where):
            expected[name] = logits(model)
    with es.steer(model, bank, [None, None], positions=slice(1, None), **where) as steering:
        path = export(steering, INPUTS, PROGRAMS, tmp_path)
    return path, expected


def test_run_without_emosteer(exported, tmp_path):
    _, expected = exported
    subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path), *PROGRAMS], check=True, timeout=PATIENCE, cwd="/"
    )
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for name, logits_of in expected.items():
        torch.testing.assert_close(found[name], logits_of, rtol=1e-4, atol=1e-4)
    assert (found["calm"][0] - found["idle"][0]).abs().max() > 0.1


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("exported", [[1]], indirect=True)  # a C++ compiler is slow
def test_compiled_ahead_of_time(exported, tmp_path):
    path, expected = exported
    package = torch._inductor.aoti_compile_and_package(
        torch.export.load(path), package_path=str(tmp_path / "aoti.pt2")
    )
    run = torch._inductor.aoti_load_package(package)
    for name, logits_of in expected.items():
        table = torch.load(tmp_path / f"{name}.table.pt", weights_only=True)
        torch.testing.assert_close(run(table, **INPUTS), logits_of, rtol=1e-4, atol=1e-4)


def test_only_what_is_attached_can_be_exported(model, bank):
    with pytest.raises(RuntimeError, match="not attached"):
        es.exportable(es.steer(model, bank, "calm", 0.1))
    with (
        es.steer(model, bank, "calm", 0.1, slots=12) as steering,
        pytest.raises(ValueError, match="12 slots"),
    ):
        es.exportable(steering)
