"""`emosteer convert`: what it writes, says and refuses."""

import sys

import pytest

from emosteer import cli, formats
from emosteer.bank import Bank

from .banks import full, same, some


@pytest.fixture
def convert(monkeypatch, capsys):
    """Run the command; its exit code, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["emosteer", "convert", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return caught.value.code or 0, said.out, said.err

    return run


def test_from_ours_to_another_and_back(tmp_path, convert):
    bank = full()
    ours, other, again = tmp_path / "calm.safetensors", tmp_path / "calm.gguf", tmp_path / "again.npz"
    bank.save(ours)
    code, out, _ = convert(ours, other, "--model-type", "qwen2")
    assert code == 0
    assert "Bank(1 concepts [calm], layers [1, 2, 5], dim=24)" in out
    assert f"written: {other} (GGUF control vector)" in out
    assert "not carried by this format: mean, projection_mean, projection_std" in out
    assert convert(other, again)[0] == 0
    same(bank, Bank.load(again))


def test_a_file_for_each_concept_and_one_alone(tmp_path, convert):
    bank = full(names=("calm", "angry"), layers=(0, 1))
    bank.save(tmp_path / "bank.safetensors")
    code, out, _ = convert(tmp_path / "bank.safetensors", tmp_path / "{concept}.gguf", "--layer-0", "drop")
    assert code == 0
    assert out.count("written:") == 2
    assert Bank.load(tmp_path / "angry.gguf").layers == (1,)
    convert(
        tmp_path / "bank.safetensors",
        tmp_path / "x.pt",
        "--to",
        "hotwire",
        "--concept",
        "angry",
        "--n-layers",
        "6",
    )
    same(bank.subset("angry"), Bank.load(tmp_path / "x.pt"))
    convert(
        tmp_path / "x.pt",
        tmp_path / "y.pt",
        "--to",
        "lm_eval",
        "--hookpoint",
        "h.{layer}",
        "--name",
        "furious",
    )
    assert Bank.load(tmp_path / "y.pt").names == ("furious",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("calm.safetensors", "x.pt"), "several libraries use .pt; say format="),
        (
            ("calm.safetensors", "x.gguf", "--n-layers", "3"),
            "the format gguf takes length, model_type, layer_0",
        ),
        (("calm.safetensors", "x.gguf", "--concept", "clam"), "there is no concept 'clam'; there are: calm"),
        (("calm.safetensors", "x.gguf", "--from", "npz"), "is not a valid .npz file"),
        (("none.gguf", "x.svec"), "no bank at"),
        (("calm.safetensors", "no/x.svec"), "no folder"),
    ],
)
def test_an_error_is_one_line(tmp_path, monkeypatch, convert, arguments, message):
    monkeypatch.chdir(tmp_path)
    some().save("calm.safetensors")
    code, out, err = convert(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("x.*"))


def test_a_vector_of_another_library_keeps_its_bits(tmp_path, convert):
    raw = {l: rows * 7.3 for l, rows in some().directions.items()}
    formats.write(formats.Vectors(["calm"], raw), tmp_path / "a.json")
    convert(tmp_path / "a.json", tmp_path / "b.svec")
    found = formats.read(tmp_path / "b.svec").directions
    assert all((found[l] == raw[l]).all() for l in raw)
