"""The commands on the built-in model, and what they say to bad input."""

import importlib
import json

import pytest
import torch
from typer.testing import CliRunner

import emosteer as es
from emosteer.cli import app, inputs, main
from emosteer.cli.serve import adapter_programs
from tests.stories import few_stories

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("commands")]
EMOTIONS = ("joyful", "calm", "desperate", "furious")


@pytest.fixture(scope="module")
def bank(smollm2, tmp_path_factory):
    """The path of a bank of four emotions at two layers."""
    model, tok = smollm2
    path = tmp_path_factory.mktemp("bank") / "some.safetensors"
    es.extract(model, tok, few_stories(EMOTIONS), layers=[14, 20], progress=False).save(path)
    return path


@pytest.fixture
def command(monkeypatch, smollm2):
    """Runs a command in this process, with the model that is loaded already."""
    monkeypatch.setattr(es, "load", lambda name: smollm2, raising=False)
    runner = CliRunner(env={"COLUMNS": "120"})

    def run(*arguments):
        return runner.invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    return run


def failing(capsys, *arguments, monkeypatch):
    monkeypatch.setattr("sys.argv", ["emosteer", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_help_names_every_command(command):
    text = command("--help").stdout
    for name in ("demo", "doctor", "extract", "read", "steer", "convert", "corpus"):
        assert f" {name} " in text


def test_doctor(command):
    text = command("doctor").stdout
    assert "backend cpu" in text
    assert "ready" in text


def test_steer(command, bank):
    done = command(
        "steer",
        "When I got home,",
        "--add",
        "joyful=0.4",
        "--layers",
        14,
        "--tokens",
        12,
        "--bank",
        bank,
        "--json",
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["program"] == "joyful +0.4"
    assert found["steered"] != found["unsteered"]
    table = command(
        "steer",
        "Hello",
        "--cap",
        "furious=0",
        "--ablate",
        "calm",
        "--layers",
        "14,20",
        "--tokens",
        4,
        "--bank",
        bank,
    )
    assert "furious ≤ 0 + calm = 0" in table.stdout


def test_steer_is_what_the_library_does(command, bank, smollm2):
    model, tok = smollm2
    done = command(
        "steer", "It was", "--add", "calm=0.3", "--layers", 20, "--positions", "mask:011",
        "--tokens", 8, "--bank", bank, "--json",
    )  # fmt: skip
    inputs = tok(["It was"], return_tensors="pt")
    with es.steer(model, es.Bank.load(bank), "calm", 0.3, layers=20, positions=[False, True, True]):
        row = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=tok.pad_token_id)[0]
    assert json.loads(done.stdout)["steered"] == tok.decode(
        row[inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )


def test_read(command, bank, tmp_path):
    chat = tmp_path / "chat.json"
    chat.write_text(json.dumps([{"role": "user", "content": "We won! I could dance."}]))
    done = command(
        "read", "--file", chat, "--bank", bank, "--html", tmp_path / "r.html", "--plot", tmp_path / "r.png"
    )
    assert done.exit_code == 0, done.output
    assert "joyful" in done.stdout
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads(command("read", "We won!", "--bank", bank, "--json").stdout)
    assert "".join(found["tokens"]) == "We won!"
    assert len(found["scores"]) == len(found["tokens"])


def test_extract(command, tmp_path):
    out = tmp_path / "bank.safetensors"
    done = command("extract", out, "--emotion", "calm", "--emotion", "furious", "--layers", "0.3")
    assert done.exit_code == 0, done.output
    bank = es.Bank.load(out)
    assert set(bank.names) == {"calm", "furious"}
    assert bank.layers == (9,)
    assert list(tmp_path.iterdir()) == [out]


def test_a_stopped_extraction_goes_on(command, tmp_path, monkeypatch):
    from emosteer.extraction.counting import Counting

    out, part = tmp_path / "bank.safetensors", tmp_path / "bank.safetensors.part"
    arguments = (
        "extract",
        out,
        "--emotion",
        "calm",
        "--emotion",
        "furious",
        "--layers",
        "0.1",
        "--batch-tokens",
        300,
    )
    count, counted = Counting._count_batch, []

    def stopped_at_the_third(self, batch, kind):
        if len(counted) == 2:
            raise KeyboardInterrupt
        counted.append(batch)
        count(self, batch, kind)

    monkeypatch.setattr(Counting, "_count_batch", stopped_at_the_third)
    done = command(*arguments)
    assert done.exit_code == 130
    assert f"{part} keeps what was counted" in done.stderr
    assert part.exists()
    assert not out.exists()
    counted.clear()
    monkeypatch.setattr(Counting, "_count_batch", lambda *a: (counted.append(a[1]), count(*a)))
    assert command(*arguments).exit_code == 0
    whole = es.Bank.load(out)
    out.unlink()
    again = list(counted)
    assert command(*arguments).exit_code == 0
    assert (
        len(counted) - len(again) == len(again) + 2
    )  # what was counted before the stop was not counted again
    assert torch.equal(es.Bank.load(out).directions[3], whole.directions[3])


def test_the_demo(command, tmp_path, monkeypatch):
    from tests.browser import shown

    some = (
        "joyful",
        "happy",
        "calm",
        "relaxed",
        "desperate",
        "sad",
        "furious",
        "angry",
        "afraid",
        "excited",
        "tired",
    )
    demo = importlib.import_module("emosteer.cli.demo")
    monkeypatch.setattr(demo, "LAYERS", range(17, 20))
    stories = few_stories()
    monkeypatch.setattr(es.emotions, "corpus", lambda: stories)
    demo.run(tmp_path, emotions=some)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert len(set(numbers["texts"].values())) >= 4
    assert numbers["concepts"] == len(some)
    assert 0.5 < numbers["steered_over_unsteered"] < 2
    assert (tmp_path / "circumplex.png").read_bytes()[:4] == b"\x89PNG"
    page = shown(tmp_path / "index.html", tmp_path)
    for words in ("calm, desperate capped", "data:image/png;base64", "a bad night", "srcdoc"):
        assert words in page


def test_layers_as_written():
    assert inputs.layers("12-14,20") == [12, 13, 14, 20]
    assert inputs.layers("0.5") == 0.5
    assert inputs.layers("middle") == "middle"


def test_banks_and_programs_as_written(tmp_path):
    there = tmp_path / "seed=1.safetensors"
    there.touch()
    assert inputs.named_files([str(there)]) == {"seed=1": str(there)}
    assert inputs.named_files(["moods=a/b.safetensors", "c/d.safetensors"]) == {
        "moods": "a/b.safetensors",
        "d": "c/d.safetensors",
    }
    with pytest.raises(ValueError, match="two banks are called 'd'"):
        inputs.named_files(["d=x", "c/d.safetensors"])
    assert adapter_programs(["polite=calm = 0", "b=sad +1"]) == {"polite": "calm = 0", "b": "sad +1"}
    for wrong in (["polite"], ["=calm +1"], ["a=calm +1", "a=sad +1"]):
        with pytest.raises(ValueError, match="--adapter-default"):
            adapter_programs(wrong)
    both = inputs.program(program=["calm +0.1; angry <= 0"], add=["proud=1"])
    assert both == es.add("calm", 0.1) + es.cap("angry", 0) + es.add("proud", 1)


def test_errors_are_one_line(capsys, monkeypatch, smollm2, bank, tmp_path):
    monkeypatch.setattr(es, "load", lambda name: smollm2, raising=False)
    monkeypatch.setattr(es.emotions, "bank", lambda *_, **__: pytest.fail("extracts"))
    given = dict(monkeypatch=monkeypatch)
    cases = [
        (("steer", "x"), "give a program"),
        (("steer", "x", "--add", "calm"), "--add must be a concept and a number, like calm=0.1; got 'calm'"),
        (("steer", "x", "--add", "calm=much"), "--add 'calm=much': "),
        (("steer", "x", "--add", "clam=0.1", "--bank", bank, "--layers", "14"), "did you mean 'calm'"),
        (("steer", "x", "--add", "clam=0.1"), "did you mean 'calm'"),  # before anything is extracted
        (("read", "x", "--concept", "clam"), "did you mean 'calm'"),
        (("steer", "x", "--add", "calm=1", "--layers", "a"), "--layers must be like"),
        (("steer", "x", "--add", "calm=1", "--positions", "mask:2"), "--positions must be"),
        (("steer", "x", "--program", "calm"), "does not say what to do with 'calm'"),
        (("read",), "give the text"),
        (("read", "x", "--bank", tmp_path / "no.safetensors"), "no.safetensors"),
        (("extract", tmp_path / "no" / "b.safetensors"), "does not exist; make it first"),
        (("extract", tmp_path / "b.safetensors", "--emotion", "glum"), "no stories of glum"),
    ]
    for arguments, message in cases:
        text = failing(capsys, *arguments, **given)
        assert message in text
        assert "Traceback" not in text


def test_an_interruption_is_one_line(capsys, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(es, "load", interrupted, raising=False)
    monkeypatch.setattr("sys.argv", ["emosteer", "read", "x"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "emosteer: interrupted\n"


def test_the_shipped_bank_is_extracted_once(tiny_llama, tmp_path, monkeypatch):
    from emosteer.emotions import cached

    model, tok = tiny_llama
    monkeypatch.setenv("EMOSTEER_CACHE", str(tmp_path))
    few = few_stories(EMOTIONS)
    monkeypatch.setattr(cached, "corpus", lambda: few)
    first = es.emotions.bank(model, tok, progress=False)
    monkeypatch.setattr(cached, "extract", lambda *_, **__: pytest.fail("extracted again"))
    second = es.emotions.bank(model, tok, progress=False)
    assert first.names == second.names
    assert first.directions[2].equal(second.directions[2])
    assert len(list((tmp_path / "banks").iterdir())) == 1
