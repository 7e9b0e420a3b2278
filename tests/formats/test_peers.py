"""Each library reads the very vectors that we write for it, and we those that it writes.

The libraries want versions of their own: `make test-peers` runs this file in their environment.
"""

import importlib
import json
import os

import numpy as np
import pytest
import torch

from emosteer import formats
from emosteer.bank import Bank

from .banks import full, same, some


def library(name):
    """The library; in the environment of the peers it must be there."""
    if os.environ.get("EMOSTEER_PEERS"):
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"needs {name}: make test-peers", exc_type=Exception)


def raw(bank):
    """Layer → the vector as another library holds it, float32 `[D]`."""
    return {layer: (bank.directions[layer] * bank.magnitude[layer][:, None])[0] for layer in bank.layers}


def equal(theirs, ours):
    assert sorted(theirs) == sorted(ours)
    for layer, vector in ours.items():
        got = torch.as_tensor(np.array(theirs[layer]))
        assert got.dtype == torch.float32
        assert torch.equal(got.reshape(-1), vector), layer


@pytest.mark.parametrize(
    ("module", "name", "architecture"),
    [("repeng", "ControlVector", "controlvector"), ("dialz.vector", "SteeringVector", "steeringvector")],
)
def test_repeng_and_dialz(tmp_path, module, name, architecture):
    vector = getattr(library(module), name)
    bank, path = full(), tmp_path / "calm.gguf"
    if architecture == "controlvector":  # dialz reads no other name than its own, and warns of none
        bank.save(path)
        theirs = vector.import_gguf(path)
        equal(theirs.directions, raw(bank))
        assert theirs.model_type == "llama"
        again = tmp_path / "again.gguf"  # theirs still maps the first
        theirs.export_gguf(again)
        equal(formats.read(again).directions, raw(bank))
        assert vector.import_gguf(again) == theirs
    given = vector("llama", {l: v.numpy() for l, v in raw(bank).items()})
    path = tmp_path / "given.gguf"
    given.export_gguf(path)
    again = Bank.load(path, name="calm")
    same(again, Bank(["calm"], {l: v[None] for l, v in raw(bank).items()}))
    assert again.provenance["model_type"] == "llama"
    same(Bank.of(given, "calm"), again)


def test_steering_vectors(tmp_path):
    vector = library("steering_vectors").SteeringVector
    bank, path = full(), tmp_path / "calm.pt"
    bank.save(path, format="steering_vectors")
    theirs = vector(**torch.load(path, weights_only=True))
    equal(theirs.layer_activations, raw(bank))
    assert theirs.layer_type == "decoder_block"
    torch.save(theirs, path)  # as its users do: a pickle of the library's class
    equal({l: rows[0] for l, rows in formats.read(path).directions.items()}, raw(bank))
    same(Bank.of(theirs, "calm"), Bank.load(path, name="calm"))


def test_lm_eval(tmp_path):
    steered = library("lm_eval.models.hf_steered").SteeredModel
    bank, path = full(), tmp_path / "calm.pt"
    bank.save(path, format="lm_eval")
    content = torch.load(path, weights_only=True)
    assert list(content) == ["layers.1", "layers.2", "layers.5"]
    x = torch.randn(2, 3, 24)
    for layer in bank.layers:  # as SteeredModel.__init__ makes its hooks
        what = content[f"layers.{layer}"]
        got = steered.add(x, vector=what["steering_vector"] * what["steering_coefficient"], head_index=None)
        assert torch.equal(got, x + raw(bank)[layer])
        direction, bias = what["steering_vector"], torch.randn(24)
        held = steered.clamp(x, direction / direction.norm(), 2.5, None, bias)
        torch.save({"layers.4": {**what, "action": "clamp", "steering_coefficient": 2.5, "bias": bias}}, path)
        again = Bank.load(path)
        value = again.provenance["hold"]["4"]  # what es.hold takes, times the scale
        assert torch.allclose(held @ again.directions[4][0], torch.full((2, 3), value), atol=1e-4)
        assert again.magnitude[4].item() == pytest.approx(1)


def test_hotwire(tmp_path):
    state = library("hotwire._state").SteerState.__new__(library("hotwire._state").SteerState)
    state.store, state.vector_norms = {}, {}
    state.bank = library("hotwire._bank").VectorBank(24, 2, torch.device("cpu"), torch.float32)
    bank = full()
    bank.save(tmp_path / "calm.pt", format="hotwire", n_layers=8)
    state.load_store(str(tmp_path))
    table = state.store["calm"][0]
    assert table.shape == (8, 24)
    equal({layer: table[layer] for layer in bank.layers}, raw(bank))
    assert not table[[0, 3, 4, 6, 7]].any()


def test_saklas(tmp_path):
    profile = library("saklas.core.profile").Profile
    bank, path = full(), tmp_path / "calm.safetensors"
    bank.save(path, format="saklas")
    theirs = profile.load(path)
    equal(dict(theirs.items()), raw(bank))
    theirs.save(tmp_path / "theirs.safetensors")  # its metadata comes along, and with it our note
    same(Bank.load(tmp_path / "theirs.safetensors"), bank)
    profile(raw(bank)).save(path)
    equal({l: rows[0] for l, rows in formats.read(path).directions.items()}, raw(bank))
    bank.save(tmp_path / "calm.gguf")
    equal(dict(profile.load(tmp_path / "calm.gguf").items()), raw(bank))


def test_gguf_package(tmp_path):
    """The container as ggml's own Python package reads and writes it."""
    gguf = pytest.importorskip("gguf")
    bank, path = full(), tmp_path / "calm.gguf"
    bank.save(path)
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 3
    assert {t.name: t.tensor_type.name for t in reader.tensors} == dict.fromkeys(
        ["direction.1", "direction.2", "direction.5"], "F32"
    )
    equal({int(t.name[10:]): t.data for t in reader.tensors}, raw(bank))
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "gpt2")
    writer.add_array("controlvector.some.list", ["a", "b"])
    writer.add_array("controlvector.some.numbers", [1, 2, 3])
    writer.add_custom_alignment(64)
    writer.add_tensor("direction.7", np.arange(1, 6, dtype=np.float32))
    writer.add_tensor("direction.9", np.arange(1, 6, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    vectors = formats.read(path)
    assert {l: v.tolist() for l, v in vectors.directions.items()} == {
        layer: [[1.0, 2, 3, 4, 5]] for layer in (7, 9)
    }


# Libraries that no package registry has are followed from their published source: these are their
# readers' steps, done here by hand.


def test_cast_and_aisteer360_read_what_we_write(tmp_path):
    bank, path = full(), tmp_path / "calm.svec"
    bank.save(path)
    said = json.loads(path.read_text())
    cast = {int(k): np.array(v) for k, v in said["directions"].items()}
    assert {int(k): v for k, v in said["explained_variances"].items()} == {}
    assert said["model_type"] == "llama"
    assert all(np.array_equal(cast[l], v.numpy().astype(np.float64)) for l, v in raw(bank).items())
    aisteer = {int(k): torch.tensor(v, dtype=torch.float32) for k, v in said["directions"].items()}
    equal(aisteer, raw(bank))
    two = some(names=("a", "b"))
    two.save(path)
    nested = {int(k): torch.tensor(v) for k, v in json.loads(path.read_text())["directions"].items()}
    assert {tuple(v.shape) for v in nested.values()} == {(2, 24)}


def test_svec_files_of_both(tmp_path):
    path = tmp_path / "hope.svec"
    path.write_text(
        '{"model_type": "llama", "directions": {"15": [3, 4.0]}, "explained_variances": {"15": 0.5}}'
    )
    bank = Bank.load(path)
    assert (bank.names, bank.layers, bank.magnitude[15].item()) == (("hope",), (15,), 5.0)
    assert bank.provenance == {"model_type": "llama", "explained_variances": {"15": 0.5}}
    bank.save(path)
    assert json.loads(path.read_text())["explained_variances"] == {"15": 0.5}
    path.write_text('{"model_type": "x", "directions": {"2": [[3, 4], [0, 1]]}, "meta": {"config": "abc"}}')
    bank = Bank.load(path)
    assert bank.names == ("hope.0", "hope.1")
    assert bank.provenance["meta"] == {"config": "abc"}


def test_easysteer_payload(tmp_path):
    """Its digest, computed as its `payloads` module does."""
    import base64
    import hashlib

    bank, path = full(), tmp_path / "calm.json"
    bank.save(path)
    wire = json.loads(path.read_text())
    assert (wire["version"], wire["kind"], wire["extra"]) == (1, "direction", {})
    digest = hashlib.sha256(b"direction:1")
    for name, entry in sorted(wire["tensors"].items()):
        digest.update(name.encode() + str(tuple(entry["shape"])).encode() + base64.b64decode(entry["data"]))
    assert wire["sha256"] == digest.hexdigest()
    arrays = {
        int(name.removeprefix("layer.")): np.frombuffer(base64.b64decode(entry["data"]), np.float32)
        for name, entry in wire["tensors"].items()
    }
    equal(arrays, raw(bank))


def test_easysteer_gguf_says_what_it_is_for(tmp_path):
    from emosteer.formats import gguf_container

    values = {"general.architecture": "controlvector", "controlvector.model_hint": "qwen2"}
    tensor = {"direction.1": np.ones(3, np.float32)}
    for component, fine in [("hidden_states", True), (None, True), ("attention_heads", False)]:
        native = json.dumps({"version": 1, "component": component, "metadata": {"mapping": []}})
        content = gguf_container.write(
            {**values, "controlvector.method": "pca", "controlvector.easysteer": native}, tensor
        )
        (tmp_path / "a.gguf").write_bytes(content)
        if fine:
            assert Bank.load(tmp_path / "a.gguf").provenance["gguf"]["method"] == "pca"
        else:
            with pytest.raises(ValueError, match="'attention_heads', not for the residual stream"):
                Bank.load(tmp_path / "a.gguf")


def test_steering_lite(tmp_path):
    import safetensors.torch

    bank, path = full(), tmp_path / "calm.safetensors"
    bank.save(path, format="steering_lite", coeff=2.0)
    with safetensors.safe_open(path, "pt") as file:
        cfg = json.loads(file.metadata()["cfg"])
    state = {}
    for key, tensor in safetensors.torch.load_file(path).items():
        layer, _, sub = key.partition(".")
        state.setdefault(int(layer.removeprefix("layer")), {})[sub] = tensor
    equal({l: s["v"] for l, s in state.items()}, raw(bank))
    assert (cfg["method"], cfg["layers"], cfg["coeff"], cfg["target_submodule"]) == (
        "mean_diff",
        [1, 2, 5],
        2.0,
        None,
    )
    cfg = {**cfg, "method": "pca", "coeff": 3.5}
    safetensors.torch.save_file({"layer4.v": torch.tensor([3.0, 4.0])}, path, {"cfg": json.dumps(cfg)})
    again = Bank.load(path)
    assert again.magnitude[4].item() == 5
    assert again.provenance["steering_lite"]["coeff"] == 3.5
    again.save(path, format="steering_lite")
    with safetensors.safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["cfg"]) == {**cfg, "layers": [4]}
