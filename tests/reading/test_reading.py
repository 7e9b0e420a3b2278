"""Reading a text or a chat: scores against the definition in float64, turns, summaries, pictures, bad input."""

import io
import json
import re

import pytest
import torch

import emosteer as es
from emosteer.models.chat import rendered

STORIES = [
    ("glad", "The sun came out and we all laughed and sang the whole long way home."),
    ("glad", "She won the prize and hugged every one of her friends with a wide smile."),
    ("low", "The rain fell on the empty house and nobody came to see him any more."),
    ("low", "He lost the ring she gave him and sat alone until the room was dark."),
    ("cross", "He slammed the door and shouted at them until his voice was gone."),
]
CHAT = [
    {"role": "user", "content": "My dog is ill."},
    {"role": "assistant", "content": "  I am sorry to hear that.  "},
    {"role": "user", "content": "Thanks."},
]


@pytest.fixture
def tiny(tiny_llama):
    model, tok = tiny_llama
    return model, tok, es.extract(model, tok, STORIES, skip_tokens=3, progress=False)


def expected(model, tok, text, bank, layer):
    ids = tok(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        x = model(ids, output_hidden_states=True).hidden_states[layer + 1][0].double()
    return (x - bank.mean[layer].double()) @ bank.directions[layer].double().T


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_z_scores_follow_their_definition(tiny, layer):
    model, tok, bank = tiny
    reading = es.read(model, tok, "hello there, héllo 日本", bank, layers=layer)
    p = expected(model, tok, reading.text, bank, layer)
    z = (p - bank.projection_mean[layer].double()) / bank.projection_std[layer].double()
    torch.testing.assert_close(reading.scores.double(), z, rtol=1e-4, atol=1e-3)
    assert reading.scores.shape == (len(reading.tokens), len(bank))
    assert reading.names == bank.names


def test_projections_are_in_mean_norms(tiny):
    model, tok, bank = tiny
    reading = es.read(model, tok, "hello", bank, layers=2, unit="projection", concepts=["low"])
    p = expected(model, tok, "hello", bank, 2)[:, bank.index("low")] / bank.scale[2]
    torch.testing.assert_close(reading.of("low").double(), p, rtol=1e-5, atol=1e-5)


def test_layers_are_averaged(tiny):
    model, tok, bank = tiny
    reading = es.read(model, tok, "some words", bank, layers=[1, 3])
    assert reading.layers == (1, 3)
    torch.testing.assert_close(reading.scores, (reading.by_layer[1] + reading.by_layer[3]) / 2)


def test_the_pieces_are_the_text(tiny):
    model, tok, bank = tiny
    for text in ("he said: hello", "héllo 日本 🎈\n\ttab", " leading and trailing "):
        assert "".join(es.read(model, tok, text, bank).tokens) == text


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("layer", [1, 3])
def test_a_steered_model_is_read_as_steered(tiny, fused, layer):
    model, tok, bank = tiny
    plain = es.read(model, tok, "hello there", bank, layers=layer, unit="projection")
    with es.steer(
        model, bank, es.add("glad", 0.5, preserve_norm=False), layers=layer, fused=fused
    ) as steering:
        assert ("inside" in steering.report()) == fused
        steered = es.read(model, tok, "hello there", bank, layers=layer, unit="projection")
    change = steered.of("glad") - plain.of("glad")
    torch.testing.assert_close(change, torch.full_like(change, 0.5), rtol=1e-4, atol=1e-4)


def test_reading_leaves_the_model_alone(tiny):
    model, tok, bank = tiny
    ids = tok("hello", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(ids).logits
        es.read(model, tok, "hello", bank)
        assert torch.equal(model(ids).logits, before)
    assert all("forward" not in vars(module) for module in model.modules())


def test_the_turns_of_a_chat(tiny):
    model, tok, bank = tiny
    reading = es.read(model, tok, CHAT, bank)
    said = ["".join(reading.tokens[t.start : t.stop]) for t in reading.turns]
    assert [t.role for t in reading.turns] == ["user", "assistant", "user"]
    assert [s.strip() for s in said] == [m["content"].strip() for m in CHAT]
    assert reading.text == tok.apply_chat_template(CHAT, tokenize=False)
    marks = set(range(len(reading.tokens))) - set(reading.counted())
    assert {"<s>", "</s>"} <= {reading.tokens[i] for i in marks}
    middle = reading.turns[1]
    torch.testing.assert_close(
        reading.mean(middle.start, middle.stop), reading.scores[middle.start : middle.stop].mean(0)
    )


def test_repeated_messages_keep_their_places(tiny):
    _, tok, _ = tiny
    chat = [{"role": "user", "content": "no"}, {"role": "assistant", "content": "no"}] * 2
    found = rendered(tok, chat)
    assert ["".join(found.pieces[t.start : t.stop]) for t in found.turns] == ["no"] * 4
    assert len({t.start for t in found.turns}) == 4


def test_the_first_token_does_not_count(tiny):
    model, tok, bank = tiny
    reading = es.read(model, tok, "hello there", bank)
    torch.testing.assert_close(reading.mean(), reading.scores[1:].mean(0))
    everything = es.read(model, tok, "hello there", bank, skip_tokens=0)
    torch.testing.assert_close(everything.mean(), everything.scores.mean(0))
    assert es.read(model, tok, "h", bank).counted() == [0]  # never none at all
    names = [name for name, _ in reading.top(3)]
    order = reading.mean().argsort(descending=True).tolist()
    assert names == [bank.names[k] for k in order]


def test_pictures(tiny, tmp_path):
    from rich.console import Console

    model, tok, bank = tiny
    reading = es.read(model, tok, CHAT, bank)
    console = Console(
        record=True, width=120, file=io.StringIO(), color_system="truecolor", force_terminal=True
    )
    console.print(reading.table(2))
    console.print(reading.heatmap(["glad", "low"]))
    printed = console.export_text(styles=True)
    for name, _ in reading.top(2):
        assert name in printed
    assert "assistant" in printed
    assert "\x1b[38;2;0;0;0;48;2;" in printed
    reading.plot(tmp_path / "reading.png")
    assert (tmp_path / "reading.png").read_bytes()[:4] == b"\x89PNG"


def test_the_page_in_a_browser(tiny, tmp_path):
    from tests.browser import shown

    model, tok, bank = tiny
    chat = [{"role": "user", "content": "</script><b>bold</b> & 'quotes'"}, CHAT[1]]
    reading = es.read(model, tok, chat, bank)
    path = tmp_path / "page.html"
    text = reading.to_html(path)
    assert path.read_text(encoding="utf-8") == text
    assert not re.search(r"(src|href)=|https?://", text)  # nothing is fetched

    dom = shown(path, tmp_path)
    strongest = reading.top(1)[0][0]
    assert f'aria-pressed="true">{strongest}</button>' in dom
    assert dom.count("<option ") == len(bank)
    assert "&lt;b&gt;bold" in re.sub(r"</span><span[^>]*>", "", dom)
    for part in ("background: rgb(", "polyline", "assistant"):
        assert part in dom

    other = reading.top(3)[2][0]
    dom = shown(path, tmp_path, f"#{other}")
    assert f"{other}: red is above" in dom
    embedded = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.S)[1])
    assert embedded["scores"][embedded["names"].index(other)] == pytest.approx(
        reading.of(other).tolist(), abs=1e-3
    )


def test_bad_input(tiny):
    model, tok, bank = tiny
    plain = es.Bank(bank.names, bank.directions)
    cases = [
        (TypeError, "bank must be an emosteer Bank, got dict", dict(bank={})),
        (ValueError, "unit must be one of z, projection, got 'zz'", dict(unit="zz")),
        (ValueError, "skip_tokens must be an integer of at least 0, got -1", dict(skip_tokens=-1)),
        (ValueError, "no concept 'gladd'; did you mean 'glad'", dict(concepts=["gladd"])),
        (ValueError, "concepts is empty", dict(concepts=[])),
        (ValueError, "text is empty", dict(text="")),
        (ValueError, "chat without messages", dict(text=[])),
        (TypeError, "text must be a string or a list of messages, got int", dict(text=3)),
        (TypeError, r"text\[1\] must be a message", dict(text=[CHAT[0], {"role": "user"}])),
        (ValueError, "needs the statistics", dict(bank=plain)),
        (ValueError, "layer 17 is outside the model", dict(layers=17)),
        (ValueError, "takes at most 512; split it", dict(text="ab" * 600)),
    ]
    for error, message, change in cases:
        arguments = {"text": "hello", "bank": bank, **change}
        with pytest.raises(error, match=message):
            es.read(model, tok, arguments.pop("text"), arguments.pop("bank"), **arguments)
    reading = es.read(model, tok, "hello", plain, unit="projection")
    with pytest.raises(ValueError, match="'sad' was not read"):
        reading.of("sad")
    with pytest.raises(ValueError, match="no token of"):
        reading.mean(4, 4)
    tok.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        es.read(model, tok, CHAT, bank)
