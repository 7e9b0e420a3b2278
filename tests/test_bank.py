import json
import math
import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch

import emosteer.formats.files
from emosteer.bank import Bank

NAMES = ("calm", "angry", "joyful")


def make(layers=(1, 3), d=8, **more):
    torch.manual_seed(0)
    k = len(NAMES)
    return Bank(NAMES, {layer: torch.randn(k, d) * 3 for layer in layers}, **more)


def full():
    bank = make()
    return make(
        mean={l: torch.randn(8) for l in bank.layers},
        scale={1: 1 / 3, 3: 2.5},
        projection_mean={l: torch.randn(3) for l in bank.layers},
        projection_std={l: torch.rand(3) + 0.1 for l in bank.layers},
        provenance={"model": "tiny", "versions": {"torch": "2"}, "n": 3},
    )


def same(a, b):
    assert (a.names, a.layers, a.scale, a.provenance) == (b.names, b.layers, b.scale, b.provenance)
    for field in ("directions", "magnitude", "mean", "projection_mean", "projection_std"):
        mine, other = getattr(a, field), getattr(b, field)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[l], other[l]) for l in mine)


def test_directions_are_normalised_and_lengths_become_magnitudes():
    given = torch.tensor([[3.0, 4.0], [0.0, -2.0], [1e-20, 0.0]])
    bank = Bank(NAMES, {0: given})
    assert torch.allclose(bank.directions[0], torch.tensor([[0.6, 0.8], [0.0, -1.0], [1.0, 0.0]]))
    assert torch.allclose(bank.magnitude[0], torch.tensor([5.0, 2.0, 1e-20]))
    assert bank.directions[0].dtype == bank.magnitude[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_float_comes_out_as_fp32_of_unit_length(dtype):
    bank = Bank(NAMES, {0: torch.randn(3, 16).to(dtype)})
    assert bank.directions[0].dtype == torch.float32
    assert (bank.directions[0].double().norm(dim=1) - 1).abs().max() < 1e-6


def test_arrays_and_lists_are_taken_and_gradients_dropped():
    assert Bank(["a"], {0: np.array([[2.0, 0.0]])}).magnitude[0].item() == 2
    assert Bank(["a"], {0: [[0.0, 3.0]]}).dim == 2
    assert not Bank(["a"], {0: torch.ones(1, 2, requires_grad=True)}).directions[0].requires_grad


def test_unit_rows_keep_their_bits_and_given_magnitudes_are_kept():
    bank = make()
    again = Bank(NAMES, bank.directions, magnitude=bank.magnitude)
    same(bank, again)


def test_the_small_things():
    bank = full()
    assert len(bank) == 3
    assert "calm" in bank
    assert "clam" not in bank
    assert bank.index("joyful") == 2
    assert bank.layers == (1, 3)
    assert bank.dim == 8
    assert bank.scale[1] == 1 / 3
    shown = "Bank(3 concepts [calm, angry, joyful], layers [1, 3], dim=8, model='tiny')"
    assert repr(bank) == shown
    assert make().mean == {}
    assert make().scale == {}


def test_unknown_concept_proposes_the_nearest():
    with pytest.raises(ValueError, match=r"no concept 'clam'; did you mean 'calm'\? It has 3"):
        make().index("clam")
    with pytest.raises(ValueError, match="no concept 'xyzzy'; It has"):
        make().index("xyzzy")


@pytest.mark.parametrize(("count", "end"), [(8, "c7"), (9, "c7, ...")])
def test_some_of_the_concepts_are_named(count, end):
    bank = Bank([f"c{i}" for i in range(count)], {0: torch.eye(count)})
    with pytest.raises(ValueError, match=f"It has {count}: c0, .*{end}$"):
        bank.index("xyzzy")


def test_what_must_be_named_stays_so():
    """Calls that would mean something else after a new argument, or in another order, are refused."""
    with pytest.raises(TypeError, match="positional"):
        Bank(NAMES, {0: torch.eye(3)}, None)
    with pytest.raises(TypeError, match="positional"):
        Bank.load("bank.safetensors", -1)
    with pytest.raises(TypeError, match="positional"):
        Bank.of(torch.ones(1, 4), "calm", 1)


def test_orthogonalised():
    """Each is what is left of its direction after those before it; the first stays as it is."""
    bank = full()
    straight = bank.orthogonalised(["joyful", "calm"])
    assert straight.names == ("joyful", "calm")
    for l in bank.layers:
        a, b = bank.directions[l][2].double(), bank.directions[l][0].double()
        left = b - (a @ b) * a
        expected = torch.stack([a, left / left.norm()]).float()
        torch.testing.assert_close(straight.directions[l], expected, rtol=0, atol=1e-6)
    assert straight.scale == bank.scale
    assert straight.projection_mean == {}
    twice = Bank(["a", "b"], {0: [[1.0, 0.0], [-2.0, 0.0]]})
    with pytest.raises(ValueError, match="'b' lies in the span"):
        twice.orthogonalised(["a", "b"])


def test_subset_picks_in_order():
    bank = full()
    part = bank.subset(["joyful", "calm"])
    assert part.names == ("joyful", "calm")
    for field in ("directions", "magnitude", "projection_mean", "projection_std"):
        for l in bank.layers:
            assert torch.equal(getattr(part, field)[l], getattr(bank, field)[l][[2, 0]])
    assert part.scale == bank.scale
    assert all(torch.equal(part.mean[l], bank.mean[l]) for l in bank.layers)
    assert bank.subset("calm").names == ("calm",)
    with pytest.raises(ValueError, match="did you mean 'joyful'"):
        bank.subset(["joyfull"])
    with pytest.raises(ValueError, match="more than once"):
        bank.subset(["calm", "calm"])
    with pytest.raises(ValueError, match="empty"):
        bank.subset([])


def test_to_moves_every_tensor():
    moved = full().to("meta")
    assert moved.device.type == "meta"
    assert {t.device.type for t in moved.mean.values()} == {"meta"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": "calm"}, "single string"),
        ({"names": []}, "names is empty"),
        ({"names": ["a", " "]}, r"names\[1\]"),
        ({"names": ["a", "a"]}, r"all be different.*\['a'\]"),
        ({"names": ["a", "b", "c"]}, r"directions\[0\] must be \[3, D\]"),
        ({"directions": {}}, "directions is empty"),
        ({"directions": [torch.ones(2, 4)]}, "must map layers"),
        ({"directions": {"0": torch.ones(2, 4)}}, "layers must be integers"),
        ({"directions": {-1: torch.ones(2, 4)}}, "layers must be integers"),
        ({"directions": {True: torch.ones(2, 4)}}, "layers must be integers"),
        ({"directions": {0: torch.ones(2, 4), 1: torch.ones(2, 5)}}, "one width"),
        ({"directions": {2: [[1.0, 1.0], [0.0, 0.0]]}}, "layer 2 is zero for: b"),
        ({"directions": {2: [[1.0, math.nan], [0.0, 1.0]]}}, "layer 2 is not finite for: a"),
        ({"directions": {0: torch.ones(2, 4, dtype=torch.complex64)}}, "must be real"),
        ({"mean": {1: torch.ones(4)}}, r"mean is given for layers \[1\]"),
        ({"mean": {0: torch.ones(5)}}, r"mean\[0\] must have shape \[4\], got \[5\]"),
        ({"scale": {0: math.inf}}, r"scale\[0\] has values that are not finite"),
        ({"scale": {0: -1.0}}, r"scale\[0\] must not be negative"),
        ({"magnitude": {0: [1.0, -1.0]}}, r"magnitude\[0\] must not be negative"),
        ({"projection_mean": {0: [1.0, 2.0]}}, "come together"),
        ({"provenance": {"x": object()}}, "JSON"),
        ({"provenance": {"x": math.nan}}, "JSON"),
    ],
)
def test_what_a_bank_refuses(change, message):
    arguments = {"names": ["a", "b"], "directions": {0: torch.eye(2, 4)}, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        Bank(arguments.pop("names"), arguments.pop("directions"), **arguments)


@pytest.mark.parametrize("make_one", [make, full])
def test_a_saved_bank_comes_back_to_the_bit(tmp_path, make_one):
    bank = make_one()
    path = tmp_path / "bank.safetensors"
    bank.save(path)
    same(bank, Bank.load(path))
    bank.subset(["angry"]).save(path)  # over an existing file
    same(bank.subset(["angry"]), Bank.load(str(path)))
    assert os.listdir(tmp_path) == ["bank.safetensors"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "bank.safetensors"
    make().save(path)
    before = path.read_bytes()

    def full_disk(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(emosteer.formats.files.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        full().save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["bank.safetensors"]


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere; make"):
        make().save(tmp_path / "nowhere" / "bank.safetensors")
    with pytest.raises(FileNotFoundError, match="no bank at"):
        Bank.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="it is a folder"):
        Bank.load(tmp_path)


def stored(tmp_path, edit):
    """A saved bank, rewritten with `edit(tensors, metadata)` applied."""
    path = tmp_path / "bank.safetensors"
    full().save(path)
    with safetensors.safe_open(path, "pt") as file:
        keys, metadata = file.keys(), file.metadata()
        tensors = {key: file.get_tensor(key) for key in keys}
    edit(tensors, metadata)
    safetensors.torch.save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t, m: m.clear(), "format is None"),
        (lambda t, m: m.update(version="9"), "version '9'"),
        (lambda t, m: m.pop("names"), "lacks 'names'"),
        (lambda t, m: m.update(names="["), "not valid JSON"),
        (lambda t, m: m.update(names="[" * 100_000), "not valid JSON"),
        (lambda t, m: m.update(names="{}"), "must be a JSON list"),
        (lambda t, m: m.update(names='["a", "b"]'), r"directions.1 must be F32 \[2, 8\]"),
        (lambda t, m: m.update(names='["a", "b", 3]'), r"names\[2\] must be a string"),
        (lambda t, m: m.update(names='["a", "b", "a"]'), "all be different"),
        (lambda t, m: m.update(layers="[1]"), "not expected"),
        (lambda t, m: m.update(layers="[]"), "layers must be integers"),
        (lambda t, m: m.update(layers="[true, 3]"), "layers must be integers"),
        (lambda t, m: m.update(layers="[1, 3, 3]"), "all be different"),
        (lambda t, m: m.update(provenance="3"), "must be a JSON dict"),
        (lambda t, m: t.pop("magnitude.3"), r"missing: \['magnitude.3'\]"),
        (lambda t, m: t.pop("directions.1"), r"missing: \['directions.1'\]"),
        (lambda t, m: t.update(other=torch.ones(1)), r"not expected: \['other'\]"),
        (lambda t, m: t.update({"mean.1": torch.ones(9)}), r"mean.1 must be F32 \[8\], got F32 \[9"),
        (lambda t, m: t.update({"scale.1": torch.ones(())}), r"scale.1 must be F64 \[\], got F32"),
        (lambda t, m: t["directions.3"][1].mul_(2), "directions.3 has length 2 in row 1"),
        (lambda t, m: t["directions.3"][1].fill_(math.nan), "directions.3 has length nan in row 1"),
        (lambda t, m: t["mean.1"].fill_(math.inf), r"mean\[1\] has values that are not finite"),
        (lambda t, m: t["projection_std.1"].neg_(), r"projection_std\[1\] must not be negative"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, edit, message):
    path = stored(tmp_path, edit)
    with pytest.raises(ValueError, match=message) as caught:
        Bank.load(path)
    assert str(path) in str(caught.value)


def test_no_truncation_or_noise_gets_through(tmp_path):
    path = tmp_path / "bank.safetensors"
    full().save(path)
    content = path.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="not a valid emosteer bank"):
            Bank.load(path)
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="not a valid emosteer bank"):
        Bank.load(path)


def test_the_header_is_readable_by_others(tmp_path):
    path = tmp_path / "bank.safetensors"
    full().save(path)
    with safetensors.safe_open(path, "np") as file:
        metadata = file.metadata()
    assert json.loads(metadata["names"]) == list(NAMES)
    assert json.loads(metadata["provenance"])["model"] == "tiny"


def test_directions_are_sent_to_a_device_once():
    """ "meta" stands for a card: the same tensor each time, anew after a change, none of it copied or pickled."""
    bank = Bank(("a", "b"), {3: torch.eye(2, 8)})
    assert bank.on("cpu", 3) is bank.directions[3]
    first = bank.on("meta", 3)
    assert (first.device.type, first.shape) == ("meta", (2, 8))
    assert bank.on(torch.device("meta"), 3) is first
    bank.directions[3][0, 1] = 0.5
    assert bank.on("meta", 3) is not first
    bank.directions[3] = torch.eye(2, 8)
    second = bank.on("meta", 3)
    assert bank.on("meta", 3) is second
    assert not any("_on" in vars(other) for other in (pickle.loads(pickle.dumps(bank)), bank.to("cpu")))
