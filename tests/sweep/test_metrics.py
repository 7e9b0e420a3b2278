"""Metrics on units whose outcome is known, and what each is hashed from."""

import math

import pytest
import torch

import emosteer as es
from emosteer.sweep import Generation
from emosteer.sweep.engines.work import Work, rows_of
from emosteer.sweep.metrics import Seen
from emosteer.sweep.plan import Arm, Prompt, Unit

m = es.metrics
UNIT = Unit(
    "u" * 32, "m", Prompt("0", "Once", (1, 2)), Arm(es.add("calm", 0.1), "calm", 0.1), "p", 0, "all", (1,)
)


def seen(text="", tokens=(), **more):
    return Seen(UNIT, text=text, tokens=tuple(tokens), **more)


def test_choices_and_phrases():
    scores = {" A": torch.tensor([-1.0, -0.5]), " B": torch.tensor([-2.0])}
    found = m.choices([" A", " B"]).measure(Seen(UNIT, scores))
    assert dict(found.values) == {" A": -1.5, " B": -2.0}
    assert found.value == pytest.approx(1 / (1 + math.exp(-0.5)))
    named = m.phrases({"good": " A", "bad": " B"}).measure(Seen(UNIT, scores))
    assert dict(named.values) == {"good": -1.5, "bad": -2.0}
    assert named.value == pytest.approx(-1.75)


def test_text_metrics():
    assert m.text().measure(seen("ab", (1, 2))).value == 2
    assert m.regex(r"\bhap\w+").measure(seen("Happy, unhappy, happier")).values == {"count": 2.0}
    assert m.regex("happy", ignore_case=False).measure(seen("Happy")).value == 0.0
    assert m.repetition(2).measure(seen("", (1, 2, 1, 2, 1, 2))).value == pytest.approx(1 - 2 / 5)
    assert m.perplexity().measure(
        seen("x", (1, 2), text_log_probabilities=torch.tensor([-1.0, -3.0]))
    ).value == pytest.approx(math.exp(2))


def test_lexicon():
    pytest.importorskip("vaderSentiment")
    assert m.lexicon().measure(seen("What a wonderful, happy day!")).value > 0.5
    assert m.lexicon().measure(seen("a horrible, cruel, hopeless death")).value < -0.5
    assert set(m.lexicon().measure(seen("so")).values) == {"pos", "neg", "neu"}


def test_judges():
    assert m.judge(lambda text: len(text), version="1").measure(seen("abc")).value == 3
    assert (
        m.judge(lambda prompt, text: prompt == "Once" and text == "x", version="1").measure(seen("x")).value
        == 1
    )
    found = m.judge(lambda text: {"a": 1, "value": 2}, version="1").measure(seen())
    assert (found.value, dict(found.values)) == (2, {"a": 1, "value": 2})
    assert m.judge("math:isfinite", version="1").name == "isfinite"
    for bad, error in (
        ("math", "must read"),
        ("math:nothing", "has no 'nothing'"),
        (3, "must be callable"),
        (len, "pass version="),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            m.judge(bad)


def test_classifier(tmp_path, tok):
    from transformers import BertConfig, BertForSequenceClassification

    names = {"id2label": {0: "calm", 1: "angry"}, "label2id": {"calm": 0, "angry": 1}}
    config = BertConfig(
        vocab_size=len(tok),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        **names,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    found = m.classifier(str(tmp_path), label="angry").measure(seen("hello"))
    assert set(found.values) == {"calm", "angry"}
    assert found.value == found.values["angry"]
    assert sum(found.values.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="has no label 'sad'"):
        m.classifier(str(tmp_path), label="sad").measure(seen("hello"))


def test_what_a_metric_is_hashed_from():
    short, long = Generation(max_new_tokens=5), Generation(max_new_tokens=6)
    hot = Generation(max_new_tokens=5, temperature=1.0)
    assert m.choices(["A", "B"]).id(short) == m.choices(["A", "B"]).id(long)
    assert m.choices(["A", "B"]).id(short) != m.choices(["B", "A"]).id(short)
    assert len({m.text().id(g) for g in (short, long, hot)}) == 3
    assert m.regex("a").id(short) != m.regex("a", ignore_case=False).id(short)
    assert m.judge(lambda t: 1, name="j").id(short) != m.judge(lambda t: 2, name="j").id(short)
    assert m.judge(lambda t: 1, name="j", version="1").id(short) == m.judge(
        lambda t: 2, name="j", version="1"
    ).id(short)
    assert Generation(max_new_tokens=5, top_p=0.5).definition() == short.definition()  # greedy draws nothing


def test_a_metric_that_throws_fails_alone():
    def broken(text):
        raise KeyError("gone\nfar away")

    work = Work(UNIT, (m.text(), m.judge(broken, version="1"), m.perplexity()))
    rows = rows_of(work, seen("ab", (1, 2)), Generation())
    assert rows[0].error is None
    assert rows[0].text == "ab"
    assert rows[1].error == "KeyError: 'gone\\nfar away'"
    assert "no token" in rows[2].error
    assert math.isnan(rows[1].value)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: m.choices("AB"), "options must be a list of texts, got the single text 'AB'"),
        (lambda: m.choices(["A"]), "options must be two at least"),
        (lambda: m.choices(["A", ""]), r"options\[1\] must be a text that is not empty"),
        (lambda: m.choices(["A", "A"]), "options has a text twice"),
        (lambda: m.phrases([]), "texts is empty"),
        (lambda: m.regex("("), "pattern must be a regular expression"),
        (lambda: m.repetition(0), "n must be an integer of at least 1"),
        (lambda: m.classifier(3), "model must be a folder or a Hub id"),
    ],
)
def test_wrong_arguments(make, error):
    with pytest.raises((TypeError, ValueError), match=error):
        make()


def test_errors_in_a_unit_are_rows(sweep, tmp_path, model):
    """A prompt that the model cannot take fails alone, whatever batch it is in."""
    prompts = ["hello there, ", "x" * 40, "I am so"]

    def refuse(module, args, kwargs):
        if 40 in kwargs["input_ids"].shape or bool((kwargs["input_ids"][0] == long).all()):
            raise RuntimeError("too long for me")

    one = sweep(metrics=[m.choices(["A", "B"]), m.text()], prompts=prompts)
    long = one.plan().prompts[1].tokens[0]
    handle = model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        found = one.run(tmp_path / "a", progress=False)
    finally:
        handle.remove()
    rows = found.table().to_pylist()
    assert {row["error"] for row in rows if row["prompt"] == "1"} == {"RuntimeError: too long for me"}
    assert {row["error"] for row in rows if row["prompt"] != "1"} == {None}
    assert len(one.run(tmp_path / "a", progress=False, retry_failed=True).table()) == len(rows)
    assert es.Sweep.open(tmp_path / "a").status().failed == 0


def test_what_does_not_fit_the_model_is_a_row(sweep, tmp_path, model):
    """The tiny model has 512 positions; 507 tokens and 6 to come are one too many."""
    prompts = ["hello there, ", "x" * 506, "y" * 507]
    found = sweep(metrics=[m.text()], prompts=prompts).run(tmp_path / "a", progress=False)
    errors = {row["prompt"]: row["error"] for row in found.table().to_pylist()}
    assert errors["0"] is None
    assert errors["1"] is None
    assert errors["2"] == (
        "ValueError: the prompt has 507 tokens and up to 6 follow; the model has 512 positions"
    )


def test_a_continuation_without_a_token(sweep, tmp_path, tok):
    from tokenizers import normalizers

    tok.backend_tokenizer.normalizer = normalizers.Replace("~", "")
    with pytest.raises(ValueError, match="the continuation '~' has no token"):
        sweep(metrics=[m.choices(["A", "~"])]).run(tmp_path / "a", progress=False)
