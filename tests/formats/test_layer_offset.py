"""How a file counts its layers: said by the format, by the model's depth or by the caller; never guessed."""

import pytest
import torch

import emosteer as es
from emosteer.bank import Bank

from .test_convert import convert  # noqa: F401  a fixture

DEPTH = 4


@pytest.fixture
def persona(tmp_path):
    """Means of `hidden_states`: one row more than there are blocks, the embeddings first."""
    table = torch.randn(DEPTH + 1, 8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "evil.pt"
    torch.save(table, path)
    return path, table


def rows(bank):
    return {layer: bank.directions[layer][0] * bank.magnitude[layer] for layer in bank.layers}


def test_the_depth_of_the_model_decides(persona):
    path, table = persona
    for bank in (Bank.load(path, depth=DEPTH), Bank.load(path, layer_offset=-1)):
        assert bank.layers == (0, 1, 2, 3)
        for layer, row in rows(bank).items():
            torch.testing.assert_close(row, table[layer + 1])
    for bank in (Bank.load(path, depth=DEPTH + 1), Bank.load(path, layer_offset=0)):
        assert bank.layers == (0, 1, 2, 3, 4)
    assert Bank.load(path, format="hotwire").layers == (0, 1, 2, 3, 4)  # the caller has said it


def test_a_file_that_does_not_say_asks(persona):
    path, _ = persona
    with pytest.raises(ValueError, match=r"evil\.pt .* 5 rows and does not say .*layer_offset=-1.*or depth="):
        Bank.load(path)
    with pytest.raises(ValueError, match=r"5 rows, the model has 7 blocks"):
        Bank.load(path, depth=7)
    with pytest.raises(ValueError, match=r"leaves no layer|holds no vector"):
        Bank.load(path, layer_offset=-5)


def test_every_format_can_be_moved_and_is_held_to_the_depth(tmp_path):
    bank = Bank(["calm"], {layer: torch.randn(1, 8) for layer in (1, 2, 4)}, scale={1: 1.0, 2: 2.0, 4: 4.0})
    for file in ("a.safetensors", "a.gguf", "a.svec", "a.npz", "a.json"):
        bank.save(tmp_path / file)
        moved = Bank.load(tmp_path / file, layer_offset=-1, depth=DEPTH)
        assert moved.layers == (0, 1, 3), file
        assert torch.equal(moved.directions[3], bank.directions[4])
        assert moved.scale == {0: 1.0, 1: 2.0, 3: 4.0}
        with pytest.raises(ValueError, match=r"layers \[4\], the model has blocks 0 to 3.*layer_offset=-1"):
            Bank.load(tmp_path / file, depth=DEPTH)
    assert Bank.of({1: torch.ones(8)}, "x", layer_offset=-1).layers == (0,)
    with pytest.raises(ValueError, match="layer_offset must be an integer"):
        Bank.load(tmp_path / "a.npz", layer_offset=0.5)


def test_the_command(persona, convert, tmp_path):  # noqa: F811
    path, table = persona
    code, _, err = convert(path, tmp_path / "x.safetensors")
    assert code != 0
    assert "does not say" in err
    assert convert(path, tmp_path / "x.safetensors", "--depth", DEPTH)[0] == 0
    torch.testing.assert_close(rows(Bank.load(tmp_path / "x.safetensors"))[3], table[4])
    assert convert(path, tmp_path / "y.safetensors", "--layer-offset", "-1")[0] == 0
    assert Bank.load(tmp_path / "y.safetensors").layers == (0, 1, 2, 3)


def test_a_bank_with_layers_that_the_model_has_not_is_refused_at_once(tiny_llama):
    model, tok = tiny_llama
    bank = Bank(["x"], {layer: torch.ones(1, 32) for layer in range(5)}, scale=dict.fromkeys(range(5), 1.0))
    for use in (
        lambda: es.steer(model, bank, "x", 0.1),
        lambda: es.read(model, tok, "some text", bank, unit="projection"),
        lambda: es.monitor(model, bank),
        lambda: es.regulate(model, bank, cap={"x": 1.0}),
    ):
        with pytest.raises(ValueError, match=r"layers \[4\], the model has blocks 0 to 3"):
            use()
