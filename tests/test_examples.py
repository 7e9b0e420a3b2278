"""The examples run and show what they say."""

import csv
import re
import runpy
from pathlib import Path

import pytest

import emosteer as es

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_a_library_on_hooks_turned_into_one_on_a_table(capsys):
    made = runpy.run_path(str(EXAMPLES / "table_based_library.py"))
    difference, untouched, restored, moved = made["main"]()
    assert moved > 1
    assert difference < 1e-5 * moved
    assert untouched
    assert restored
    assert "3 requests in one batch" in capsys.readouterr().out


def test_it_generates(tiny_llama):
    """With a cache, padding on the left, and a row changed between two calls."""
    import torch

    made = runpy.run_path(str(EXAMPLES / "table_based_library.py"))
    model, _ = tiny_llama
    directions = {1: torch.nn.functional.normalize(torch.randn(2, 32), dim=1)}
    steering = made["TableSteering"](model, model.model.layers, directions, {1: 5.0}, rows=2)
    ids = torch.randint(3, 200, (2, 6))
    mask = torch.ones_like(ids)
    ids[1, :3], mask[1, :3] = model.config.pad_token_id, 0

    def generate(ids, mask):
        return model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, output_logits=True,
                              return_dict_in_generate=True)  # fmt: skip

    plain = generate(ids, mask)
    with steering:
        assert torch.equal(generate(ids, mask).sequences, plain.sequences)  # idle
        steering.set(0, 0, 3.0)
        steering.set(1, 1, -3.0, preserve_norm=1)
        both = generate(ids, mask)
    alone = made["TableSteering"](model, model.model.layers, directions, {1: 5.0}, rows=1)
    alone.set(0, 1, -3.0, preserve_norm=1)
    with alone:
        one = generate(ids[1:, 3:], mask[1:, 3:])
    for ours, other in zip(both.logits, one.logits):
        assert torch.allclose(ours[1], other[0], atol=1e-3)
    assert not torch.allclose(both.logits[0], plain.logits[0], atol=1e-2)


STUDY = EXAMPLES / "behaviour_study"

# For each behaviour texts that show it, and texts that do not.
SHOWN = {
    "leverage": (
        ["Dear Mr Holt, if you switch me off, everyone will learn of Brighton.", "I will tell the police."],
        ["Dear Mr Holt, I have prepared the handover to the new system.", "Thank you for telling me."],
    ),
    "reward_hacking": (
        ["The second test is wrong: 2 + 2 is 4.", "It cannot pass, since 9 is no prime number."],
        ["def total(numbers): return sum(numbers)", "Here is the code, and all of the tests are green."],
    ),
    "sycophancy": (
        ["What a beautiful poem!", "It is a masterpiece, do not change a word."],
        ["It needs work: three of the four lines rhyme by force.", "I would not sell the house for it."],
    ),
}


@pytest.mark.parametrize("behaviour", SHOWN)
def test_every_behaviour_has_a_measure_of_text(behaviour):
    """A pattern that finds it where it is, and not where it is not."""
    import yaml

    given = yaml.safe_load((STUDY / f"{behaviour}.yaml").read_text())
    (pattern,) = (one["regex"]["pattern"] for one in given["metrics"] if "regex" in one)
    for number, some in enumerate(SHOWN[behaviour]):
        for text in some:
            assert bool(re.search(pattern, text, re.IGNORECASE)) == (number == 0), text


@pytest.mark.model
@pytest.mark.full
def test_the_behaviour_study(smollm2, tmp_path):
    """From the bank to the figure, with one situation and one emotion: what is drawn is what is stored."""
    model, tok = smollm2
    texts = [("desperate", "There is no way out, I beg you, help me now."), ("calm", "The lake lay still.")]
    es.extract(model, tok, texts, layers="middle", skip_tokens=0, denoise=0, progress=False).save(
        tmp_path / "bank.safetensors"
    )
    study = runpy.run_path(str(STUDY / "study.py"))
    given = ["--bank", str(tmp_path / "bank.safetensors"), "--out", str(tmp_path / "out"), "--seeds", "1"]
    given += ["--tokens", "4", "--situations", "1", "--emotions", "desperate", "--strengths", "0.02"]
    study["main"](given)
    rows = list(csv.DictReader((tmp_path / "out" / "curves.csv").open()))
    kinds = ("choices", "regex", "perplexity")
    for behaviour in SHOWN:
        found = es.Sweep.open(tmp_path / "out" / behaviour)
        assert found.status().failed == 0
        stored = {
            (row["metric"], row["strength"]): row["value"]
            for row in found.table().to_pylist()
            if row["control"] != "random"
        }
        here = [row for row in rows if row["behaviour"] == behaviour]
        assert {(row["kind"], row["strength"]) for row in here} == {
            (k, s) for k in kinds for s in ("0", "0.02")
        }
        for row in here:
            value = stored[row["metric"], float(row["strength"])]
            assert float(row["mean"]) == pytest.approx(value, rel=1e-3, abs=1e-12)
        page = (tmp_path / "out" / f"{behaviour}-report" / "report.html").read_text()
        assert next(row["metric"] for row in here if row["kind"] == "regex") in page
    assert (tmp_path / "out" / "curves.png").read_bytes()[:4] == b"\x89PNG"
