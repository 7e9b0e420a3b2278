"""Our GGUF files in llama.cpp itself: its own loader reads them, and a model steered by them agrees with ours.

`make test-llamacpp` builds llama.cpp from the source package of llama-cpp-python into an environment
of its own and runs this file there and here.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import emosteer as es
from emosteer.bank import Bank

from ..patience import PATIENCE

HERE = Path(__file__).parent / "llamacpp"
PYTHON = os.environ.get("EMOSTEER_LLAMACPP")

pytestmark = pytest.mark.skipif(PYTHON is None, reason="needs llama.cpp: make test-llamacpp")


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory):
    """A function that runs a job in llama.cpp's environment."""
    environment = Path(PYTHON).absolute().parent.parent
    site = next(environment.glob("lib/python3*/site-packages/lib/libllama-common.so")).parent
    folder = tmp_path_factory.mktemp("llamacpp")
    loader = folder / "loader.so"
    command = ["g++", "-O1", "-shared", "-fPIC", str(HERE / "loader.cpp"), "-o", str(loader)]
    subprocess.run([*command, f"-L{site}", "-lllama-common", f"-Wl,-rpath,{site}"], check=True)

    variables = {**os.environ, "LD_LIBRARY_PATH": str(site)}

    def run(**job):
        path = folder / "job.json"
        path.write_text(json.dumps(job))
        command = [PYTHON, HERE / "steer.py", loader, path]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return run


def some_bank(layers, dim=576, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Bank(["calm"], {layer: torch.randn(1, dim) for layer in layers}, **more)


def test_llama_cpp_reads_the_very_numbers(tmp_path, llama_cpp):
    bank = some_bank((1, 2, 7))
    path = str(tmp_path / "calm.gguf")
    bank.save(path)
    said, _ = llama_cpp(strength=1.0, vectors=[path])
    data = np.load(path + ".npy").reshape(-1, 576)
    assert said == {"n_embd": [576]}
    assert len(data) == 7  # layers 1 to 7
    for layer in range(1, 8):
        row = bank.directions[layer] * bank.magnitude[layer] if layer in bank.layers else torch.zeros(1, 576)
        assert np.array_equal(data[layer - 1], row[0].numpy())


def test_llama_cpp_refuses_layer_0_and_takes_the_rest(tmp_path, llama_cpp):
    bank = some_bank((0, 3))
    kept, dropped = str(tmp_path / "kept.gguf"), str(tmp_path / "dropped.gguf")
    bank.save(kept, layer_0="keep")
    bank.save(dropped, layer_0="drop")
    said, stderr = llama_cpp(strength=1.0, vectors=[kept])
    assert said == {"n_embd": [-1]}, stderr
    assert llama_cpp(strength=1.0, vectors=[dropped])[0] == {"n_embd": [576]}


@pytest.mark.model
def test_a_model_steered_by_llama_cpp_agrees_with_ours(tmp_path, llama_cpp, smollm2):
    """The same weights, dequantised to float32 on both sides; what is left is the order of sums."""
    model, tokenizer = smollm2
    layers = (10, 12, 15)
    with torch.no_grad():
        tokens = tokenizer("When I got home this evening, I", return_tensors="pt").input_ids
        states = model(tokens, output_hidden_states=True).hidden_states
        scale = {layer: float(states[layer + 1][0].norm(dim=-1).mean()) for layer in layers}
        bank = some_bank(layers, scale=scale)
        plain = model(tokens).logits[0]
        with es.steer(model, bank, es.add("calm", 0.2, preserve_norm=False), layers=layers):
            steered = model(tokens).logits[0]
    path, weights = str(tmp_path / "calm.gguf"), tmp_path / "model.gguf"
    bank.save(path, length="scale", model_type="llama")
    in_float32(weights)
    job = {name: str(tmp_path / f"{name}.npy") for name in ("plain", "steered")}
    llama_cpp(strength=0.2, vectors=[path], model=str(weights), tokens=tokens[0].tolist(), **job)
    theirs = {name: torch.from_numpy(np.load(where)) for name, where in job.items()}

    moved = (steered - plain).norm()
    assert moved > 0.1 * plain.norm()
    for ours, other in ((plain, theirs["plain"]), (steered, theirs["steered"])):
        assert (ours - other).norm() < 1e-5 * moved
        assert torch.equal(ours.argmax(-1), other.argmax(-1))


def in_float32(target):
    """The built-in model's file with every tensor dequantised."""
    import gguf

    from emosteer.models.builtin import builtin

    with builtin("smollm2").whole() as path:
        reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(target, reader.get_field("general.architecture").contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub)
    for tensor in reader.tensors:
        writer.add_tensor(
            tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
