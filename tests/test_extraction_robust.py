"""Extraction that is killed, shared by processes, or given more texts than memory would hold."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import emosteer as es

from .patience import PATIENCE
from .test_extraction import NEUTRAL, STORIES

ROOT = Path(__file__).parent.parent
BATCHES = len(STORIES) + len(NEUTRAL)  # of one text each


def environment():
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }


def same_bank(a, b, **tolerance):
    assert (a.names, a.layers) == (b.names, b.layers)
    for layer in a.layers:
        for field in ("directions", "magnitude", "mean", "projection_mean", "projection_std"):
            torch.testing.assert_close(getattr(a, field)[layer], getattr(b, field)[layer], **tolerance)
        assert a.scale[layer] == pytest.approx(b.scale[layer], rel=1e-6)


@pytest.mark.parametrize("kill_at", [2, pytest.param(7, marks=pytest.mark.full)])
def test_killed(tiny_llama, tmp_path, kill_at):
    """kill -9 between a batch and its checkpoint: that batch is lost and no other, none counts twice."""
    file = tmp_path / "state.safetensors"
    command = [sys.executable, "-m", "tests.killed_extraction", str(file), str(kill_at)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "now\n"
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    with safe_open(file, framework="pt") as saved:
        counted = float(saved.get_tensor("0/stories.count").sum())
    assert counted == pytest.approx(min(kill_at - 1, len(STORIES)))  # the batches before that one

    model, tok = tiny_llama
    bank = es.extract(model, tok, STORIES, neutral=NEUTRAL, batch_tokens=1, checkpoint=file)
    whole = es.extract(model, tok, STORIES, neutral=NEUTRAL, batch_tokens=1)
    same_bank(bank, whole, rtol=0, atol=0)
    assert bank.provenance == whole.provenance
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_checkpoint_is_refused(tiny_llama, tmp_path, damage):
    file = tmp_path / "state.safetensors"
    file.write_bytes({"cut": b"\x40\x00\x00\x00\x00\x00\x00\x00{}", "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(ValueError, match="cannot be read: .* delete it to start anew"):
        es.extract(*tiny_llama, STORIES, checkpoint=file)


@pytest.mark.slow
def test_two_processes(tiny_llama, tmp_path):
    """The texts shared out over two processes give the bank of one process, in both."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*command, "-m", "tests.distributed_extraction", str(tmp_path)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (es.Bank.load(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    same_bank(first, second, rtol=0, atol=0)
    alone = es.extract(*tiny_llama, STORIES, neutral=NEUTRAL, method="lda", batch_tokens=64)
    assert first.names == alone.names
    for layer in alone.layers:
        torch.testing.assert_close(first.directions[layer], alone.directions[layer], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(first.mean[layer], alone.mean[layer], rtol=1e-4, atol=1e-5)
        assert first.scale[layer] == pytest.approx(alone.scale[layer], rel=1e-5)
    assert first.provenance["texts"] == alone.provenance["texts"]
    assert first.provenance["corpus"] == alone.provenance["corpus"]


MEMORY = """
import resource, sys
import torch
import emosteer as es
from tests.conftest import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
tok = byte_tokenizer()
config = LlamaConfig(
    vocab_size=len(tok), hidden_size=64, intermediate_size=4096, num_hidden_layers=2,
    num_attention_heads=4, max_position_embeddings=128,
)
model = LlamaForCausalLM(config).eval()


def texts(n):
    for k in range(n):  # of words that come again: a tokenizer keeps those that it has seen, up to a limit of its own
        yield f"label {k % 5}", f"{k % 97:06d} the tide is out"


es.extract(model, tok, texts(10), layers=[0], progress=False, batch_tokens=64)  # lazy imports and their memory
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


before = peak()
es.extract(model, tok, texts(int(sys.argv[1])), layers=[0], progress=False, batch_tokens=1024)
print(before, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc")
@pytest.mark.slow
@pytest.mark.scaled
def test_memory_does_not_grow_with_the_number_of_texts(level):
    """Peak above the model: 100 texts and 10,000 (of level quick 1,500), within 5%."""

    def above(n):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(n)],
            cwd=ROOT,
            env={**environment(), "MALLOC_MMAP_THRESHOLD_": "65536"},  # freed tensors leave the process
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        before, peak = map(int, done.stdout.split())
        return peak - before

    few, many = above(100), above(1_500 if level == "quick" else 10_000)
    assert few > 20_000  # kB: there is something to compare
    assert many <= 1.05 * few
