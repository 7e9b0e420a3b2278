"""Models spread over devices, disks and processes give what the same model gives in one place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import emosteer as es

from ..patience import PATIENCE
from .against_reference import assert_as_the_reference
from .conftest import padded, random_bank
from .tensor_parallel import outcome
from .test_restore import leftovers
from .tiny import tiny

ROOT = Path(__file__).parents[2]

PROGRAMS = [es.add("calm", 0.3), es.cap("angry", -0.1) + es.add("joyful", 0.2), es.rotate("weary", 20)]
IDS, MASK = padded([[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15, 16, 17, 18, 19]])
GREEDY = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits


def steered(model, bank):
    """Logits and greedy text."""
    with es.steer(model, bank, PROGRAMS, layers="all") as steering:
        text = model.generate(input_ids=IDS, attention_mask=MASK, **GREEDY)
        return logits(model), text, steering.report()


def offloaded(placement, model, folder):
    accelerate = pytest.importorskip(
        "accelerate", reason="offloading needs accelerate: pip install accelerate"
    )
    if placement == "cpu_offload":
        return accelerate.cpu_offload(model, execution_device="cpu")
    if placement == "disk_offload":
        return accelerate.disk_offload(model, str(folder), execution_device="cpu")
    parts = {name: "cpu" for name, _ in model.named_children()}
    (stack, *_) = [name for name, child in model.named_children() if hasattr(child, "layers")]
    del parts[stack]
    parts |= {
        f"{stack}.{name}": "cpu" for name, _ in getattr(model, stack).named_children() if name != "layers"
    }
    parts |= {f"{stack}.layers.{k}": "disk" if k != 1 else "cpu" for k in range(3)}
    return accelerate.dispatch_model(model, parts, main_device="cpu", offload_dir=str(folder))


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
@pytest.mark.parametrize("placement", ["cpu_offload", "disk_offload", "disk_and_memory"])
def test_offloaded(placement, architecture, tmp_path):
    whole = tiny(architecture)
    bank = random_bank(whole)
    unsteered, (expected, text, _) = logits(whole), steered(whole, bank)
    model = offloaded(placement, tiny(architecture), tmp_path)
    assert any(p.device.type == "meta" for p in model.parameters())
    torch.testing.assert_close(logits(model), unsteered)
    before = leftovers(model)
    found, found_text, report = steered(model, bank)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found_text, text)
    assert len(report.splitlines()) == 4
    assert leftovers(model) == before
    torch.testing.assert_close(logits(model), unsteered)
    steering = es.steer(model, bank, PROGRAMS, layers="all")
    assert_as_the_reference(model, bank, steering, lambda: logits(model), MASK)


@pytest.mark.parametrize("architecture", ["llama"])
def test_tensor_parallel(architecture, tmp_path):
    """Two processes over gloo: the text of one, steered with two programs, on each of them."""
    model = tiny(architecture)
    bank = random_bank(model)
    model.save_pretrained(tmp_path / "model")
    bank.save(tmp_path / "bank.safetensors")
    expected = outcome(model, bank, fused=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "tests.steering.tensor_parallel", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert found["split"], "the weights were not split over the processes"
        for way in ("True", "False", "compiled"):
            assert found[way].get("text", expected["text"]) == expected["text"]
            for name in ("logits", "unsteered"):
                torch.testing.assert_close(
                    torch.tensor(found[way][name]), torch.tensor(expected[name]), rtol=1e-4, atol=1e-4
                )
    assert expected["logits"] != expected["unsteered"]
