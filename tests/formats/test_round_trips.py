"""What is written comes back: directions and lengths to the bit, in every format."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emosteer import formats
from emosteer.bank import Bank

from .banks import ONE, SUFFIX, WHOLE, full, same, some

LENGTHS = [
    (name, length) for name in SUFFIX if name not in WHOLE for length in ("magnitude", "unit", "scale")
]


@pytest.mark.parametrize("name", WHOLE)
def test_everything_in_our_own_and_npz(tmp_path, name):
    bank = full(names=("calm", "ångst", "joyful"))
    path = tmp_path / f"bank{SUFFIX[name]}"
    bank.save(path)
    again = Bank.load(path)
    same(bank, again, ("directions", "magnitude", "mean", "projection_mean", "projection_std"))
    assert (again.scale, again.provenance) == (bank.scale, bank.provenance)


@pytest.mark.parametrize(("name", "length"), LENGTHS)
def test_directions_magnitudes_scale_and_provenance(tmp_path, name, length):
    bank = full()
    path = tmp_path / f"other{SUFFIX[name]}"
    bank.save(path, format=name, length=length)
    again = Bank.load(path)  # the format is found by itself
    same(bank, again)
    assert (again.scale, again.provenance) == (bank.scale, bank.provenance)
    assert again.mean == again.projection_mean == {}


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([name for name in SUFFIX if name not in WHOLE]),
    length=st.sampled_from(["magnitude", "unit", "scale"]),
    exponent=st.floats(-25, 25),
    seed=st.integers(0, 2**20),
    layers=st.sets(st.integers(1, 60), min_size=1, max_size=4),
    dim=st.integers(1, 40),
)
def test_any_numbers_to_the_bit(tmp_path_factory, name, length, exponent, seed, layers, dim):
    scale = dict.fromkeys(layers, 10 ** (exponent / 3))
    bank = some(layers=tuple(layers), dim=dim, spread=1.0, seed=seed, scale=scale)
    bank = Bank(bank.names, {l: v * 10**exponent for l, v in bank.directions.items()}, scale=scale)
    path = tmp_path_factory.mktemp("any") / f"other{SUFFIX[name]}"
    bank.save(path, format=name, length=length)
    same(bank, Bank.load(path, format=name))


@pytest.mark.parametrize("source", [name for name in SUFFIX if name not in WHOLE])
@pytest.mark.parametrize("target", [name for name in SUFFIX if name not in WHOLE])
def test_between_other_libraries_no_bit_changes(tmp_path, source, target):
    """Raw vectors, as another library wrote them: no note, lengths of their own."""
    raw = {
        layer: rows * bank.magnitude[layer][:, None]
        for bank in [some()]
        for layer, rows in bank.directions.items()
    }
    vectors = formats.Vectors(["calm"], raw)
    first, second = tmp_path / f"a{SUFFIX[source]}", tmp_path / f"b{SUFFIX[target]}"
    formats.write(vectors, first, source)
    formats.write(formats.read(first), second, target)
    got = formats.read(second)
    exact = "lm_eval" not in (source, target)  # which keeps direction and length apart
    for layer, rows in raw.items():
        row = got.directions[layer]
        if got.magnitude is not None:
            row = row * got.magnitude[layer][:, None]
        assert torch.equal(row, rows) if exact else torch.allclose(row, rows, rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", ONE)
def test_vectors_of_unit_length_keep_their_bits(tmp_path, name):
    """As repeng and CAST make them: their length is 1 but for the last bits, and stays so."""
    bank = some()
    unit = Bank(["calm"], bank.directions)
    path = tmp_path / f"unit{SUFFIX[name]}"
    unit.save(path, format=name)
    vectors = formats.read(path)
    for layer, rows in unit.directions.items():
        assert torch.equal(vectors.directions[layer], rows)
    same(unit, Bank.load(path))


def test_several_vectors_a_layer_in_svec(tmp_path):
    bank = full(names=("calm", "angry"))
    path = tmp_path / "two.svec"
    bank.save(path)
    same(bank, Bank.load(path))


def test_a_vector_that_was_changed_is_taken_as_it_is(tmp_path):
    """The note is about the rows it was made for; it must not turn others into what they are not."""
    path = tmp_path / "calm.gguf"
    some(layers=(1,), dim=3).save(path)
    content = bytearray(path.read_bytes())
    content[-32:-20] = struct.pack("<3f", 3.0, 0.0, -4.0)  # one row of three numbers, padded to 32 bytes
    path.write_bytes(content)
    bank = Bank.load(path)
    assert bank.names == ("calm",)
    assert torch.equal(bank.directions[1], torch.tensor([[0.6, 0.0, -0.8]]))
    assert bank.magnitude[1].item() == 5


def test_names(tmp_path):
    bank = some()
    bank.save(tmp_path / "x.gguf")
    assert Bank.load(tmp_path / "x.gguf").names == ("calm",)
    assert Bank.load(tmp_path / "x.gguf", name="serene").names == ("serene",)
    formats.write(formats.Vectors(["calm"], dict(bank.directions)), tmp_path / "y.pt", "hotwire")
    with pytest.raises(ValueError, match="got 1 names"):
        full(names=("a", "b")).save(tmp_path / "z.npz") or Bank.load(tmp_path / "z.npz", name="c")


def test_a_file_for_each_concept(tmp_path):
    bank = full(names=("calm", "angry"))
    with pytest.raises(
        ValueError, match=r"holds one concept, these are 2; .*bank.subset\('calm'\).*\{concept\}"
    ):
        bank.save(tmp_path / "both.gguf")
    bank.save(tmp_path / "emotion-{concept}.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["emotion-angry.gguf", "emotion-calm.gguf"]
    same(bank.subset("angry"), Bank.load(tmp_path / "emotion-angry.gguf"))
    with pytest.raises(ValueError, match="cannot be part of a file's name"):
        full(names=("a/b", "c")).save(tmp_path / "{concept}.gguf")


def test_layer_0_of_a_gguf(tmp_path):
    bank = full(layers=(0, 3))
    path = tmp_path / "calm.gguf"
    with pytest.raises(ValueError, match=r'llama.cpp refuses.*layer_0="drop"'):
        bank.save(path)
    bank.save(path, layer_0="keep")
    same(bank, Bank.load(path))
    bank.save(path, layer_0="drop")
    assert Bank.load(path).layers == (3,)
    assert torch.equal(Bank.load(path).directions[3], bank.directions[3])
    with pytest.raises(ValueError, match="nothing is left"):
        some(layers=(0,)).save(path, layer_0="drop")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(path="a.gguf", format="ggml"), "format must be one of emosteer, gguf"),
        (dict(path="a.pt"), "a.pt: several libraries use .pt; say format= one of lm_eval, hotwire"),
        (dict(path="a.npz", length="unit"), "npz takes no options; got 'length'"),
        (dict(path="a.gguf", length="long"), "length must be one of magnitude, unit, scale, got 'long'"),
        (dict(path="a.gguf", length="scale"), "needs the mean residual norm"),
        (dict(path="a.gguf", layer_0="maybe"), "layer_0 must be one of refuse, drop, keep"),
        (dict(path="a.pt", format="hotwire", n_layers=3), "n_layers must be at least 6, for layer 5, got 3"),
        (dict(path="a.pt", format="lm_eval", hookpoint="mlp.{layer}"), "hookpoint must name a block"),
        (dict(path="a.bin", format="saklas"), "must be named"),
    ],
)
def test_what_cannot_be_written(tmp_path, arguments, message):
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(ValueError, match=message):
        some().save(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_length_that_float32_cannot_hold(tmp_path):
    bank = Bank(["a"], some(layers=(1,)).directions, magnitude={1: [1e-44]})
    with pytest.raises(ValueError, match='do not fit float32.*length="unit"'):
        bank.save(tmp_path / "a.gguf")
    bank.save(tmp_path / "a.gguf", length="unit")
    same(bank, Bank.load(tmp_path / "a.gguf"))


def test_vectors_in_memory():
    class Object:
        def __init__(self, **attributes):
            vars(self).update(attributes)

    rows = {3: torch.tensor([3.0, 4.0]), 1: torch.tensor([0.0, 2.0])}
    arrays = {layer: row.numpy() for layer, row in rows.items()}
    for vector in (
        Object(model_type="llama", directions=arrays),
        Object(layer_activations=rows, layer_type="decoder_block"),
        Object(state={layer: {"v": row} for layer, row in rows.items()}),
        rows,
    ):
        bank = Bank.of(vector, "calm")
        assert bank.names == ("calm",)
        assert bank.layers == (1, 3)
        assert torch.equal(bank.directions[3], torch.tensor([[0.6, 0.8]]))
        assert bank.magnitude[3].item() == 5
    assert Bank.of(Object(directions={1: torch.eye(2)}), "p").names == ("p.0", "p.1")
    for wrong, error, message in [
        (Object(layer_activations=rows, layer_type="mlp"), ValueError, "only decoder_block"),
        (Object(directions=rows, component="attention_heads"), ValueError, "another component"),
        (Object(directions=rows, num_heads=4), ValueError, "another component"),
        (Object(state={1: {"U": rows[1], "S": rows[1]}}), ValueError, "no direction"),
        (Object(), TypeError, "a vector has directions, layer_activations or items"),
        ({1: "no"}, ValueError, "layer 1 must hold numbers, got str"),
        ({1: torch.tensor([float("nan"), 1.0])}, ValueError, "not finite"),
        ({10**9: rows[1]}, ValueError, "layers must lie in"),
    ]:
        with pytest.raises(error, match=message):
            Bank.of(wrong, "calm")


def test_a_strength_in_units_of_the_magnitude_is_the_other_library_s_coefficient(tmp_path, tiny_llama):
    """What docs/formats.md says of vectors without a scale, against a hook that adds the raw vector."""
    import emosteer as es

    model, _ = tiny_llama
    raw = {layer: torch.randn(1, 32) * (layer + 1) for layer in (1, 2)}
    formats.write(formats.Vectors(["calm"], raw), tmp_path / "calm.gguf")
    bank = Bank.load(tmp_path / "calm.gguf")
    ids = torch.randint(3, 200, (2, 9))
    add = lambda row: lambda module, args, output: output + 1.5 * row  # noqa: E731
    handles = [model.model.layers[l].register_forward_hook(add(row)) for l, row in raw.items()]
    with torch.no_grad():
        want = model(ids).logits
        for handle in handles:
            handle.remove()
        theirs = {layer: float(length[0]) for layer, length in bank.magnitude.items()}
        with es.steer(
            model, bank, es.add("calm", 1.5, preserve_norm=False), layers=bank.layers, scale=theirs
        ):
            got = model(ids).logits
        plain = model(ids).logits
    assert (want - plain).norm() > 0.1 * plain.norm()
    assert (got - want).norm() < 1e-5 * (want - plain).norm()
