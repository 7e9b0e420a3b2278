"""The strongest coherent strength, found by mixed batches and used by "auto"."""

import math

import pytest
import torch

import emosteer as es
from emosteer.calibration import Calibration, Measurement
from emosteer.models.scoring import continuation_log_probabilities, repetition

from .conftest import random_bank


def measured(strength, perplexity, repetition, log_probability=0.0, direction="calm", layers=(1, 2)):
    return Measurement(
        "calm", direction, layers, strength, perplexity, repetition, 0.0, log_probability, "text"
    )


def test_stops_where_the_text_first_breaks():
    """A stronger strength that happens to look coherent again does not count."""
    found = Calibration(
        (
            measured(0.0, 10.0, 0.0, direction="unsteered"),
            measured(0.1, 12.0, 0.05),
            measured(0.2, 19.0, 0.10),
            measured(0.3, 21.0, 0.00),
            measured(0.4, 11.0, 0.00),
        ),
        max_perplexity=2.0,
        max_repetition=0.15,
    )
    assert found.strength == 0.2
    assert [found.coherent(m) for m in found.measurements] == [True, True, True, False, True]


def test_repetition_breaks_a_text_too():
    found = Calibration((measured(0.0, 10.0, 0.1, direction="unsteered"), measured(0.1, 9.0, 0.3)), 2.0, 0.15)
    assert found.strength is None


def test_of_several_sets_of_layers_the_most_effective():
    plain = [measured(0.0, 10.0, 0.0, direction="unsteered", layers=at) for at in ((1,), (2,))]
    strong = [measured(0.5, 10.0, 0.0, 1.0, layers=(1,)), measured(0.1, 10.0, 0.0, 3.0, layers=(2,))]
    found = Calibration((*plain, *strong), 2.0, 0.15)
    assert found.strongest().layers == (2,)
    assert found.strongest(layers=[1]).strength == 0.5


def test_repetition():
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([1, 2] * 10) == pytest.approx(1 - 2 / 18)
    assert repetition([]) == repetition([1, 2]) == 0.0


def test_continuation_log_probabilities_are_those_of_each_text_alone(tiny_llama):
    model, _ = tiny_llama
    prompts, texts = [[5, 6, 7], [8], [9, 10]], [[20], [30, 31, 32, 33], []]
    found = continuation_log_probabilities(model, prompts, texts)
    for prompt, text, scores in zip(prompts, texts, found):
        with torch.no_grad():
            table = model(torch.tensor([prompt + text])).logits[0].log_softmax(-1)
        expected = [float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(text)]
        torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        continuation_log_probabilities(model, [[1], []], [[2], [3]])


@pytest.fixture
def calibrated(tiny_llama):
    model, tok = tiny_llama
    bank = random_bank(model)
    found = es.calibrate(
        model,
        tok,
        bank,
        ["calm", "angry"],
        strengths=[0.05, 50.0],
        layer_sets=[[1], [1, 2]],
        openings=["Today I went", "He said"],
        feels=["I feel"],
        max_new_tokens=6,
        batch_rows=5,
        max_repetition=1.0,
    )
    return model, tok, bank, found


def test_the_grid(calibrated):
    _, _, _, found = calibrated
    arms = [(m.concept, m.direction, m.layers, m.strength) for m in found.measurements]
    assert len(arms) == len(set(arms)) == 2 * 2 * (1 + 2 + 2)
    for m in found.measurements:
        assert all(math.isfinite(x) for x in (m.perplexity, m.projection, m.log_probability))
        if m.direction == "unsteered":
            assert (m.strength, m.projection, m.log_probability) == (0.0, 0.0, 0.0)
    assert len(found.table().columns) == 9


def test_a_measurement_is_what_one_alone_gives(calibrated):
    """A mixed batch of openings, arms and strengths against a loop over single texts."""
    model, tok, bank, found = calibrated
    m = next(m for m in found.measurements if (m.direction, m.layers, m.strength) == ("angry", (1, 2), 50.0))
    losses, gains = [], []
    for opening in ("Today I went", "He said"):
        ids = tok(opening, return_tensors="pt").input_ids
        with es.steer(model, bank, "angry", 50.0, layers=[1, 2]):
            out = model.generate(ids, max_new_tokens=6, do_sample=False)
        text = out[0, ids.shape[1] :].tolist()
        text = text[: max(text.index(2), 1)] if 2 in text else text
        losses.append(-float(continuation_log_probabilities(model, ids.tolist(), [text])[0].mean()))
    prompt, word = tok("I feel").input_ids, tok(" angry").input_ids
    for program in ("angry", None):
        with es.steer(model, bank, program, 50.0, layers=[1, 2]):
            gains.append(float(continuation_log_probabilities(model, [prompt], [word])[0].sum()))
    assert m.perplexity == pytest.approx(sum(math.exp(x) for x in losses) / 2, rel=1e-3)
    assert m.log_probability == pytest.approx(gains[0] - gains[1], abs=1e-3)


def test_auto_uses_what_was_found_and_the_bank_keeps_it(calibrated, tmp_path):
    model, _, bank, found = calibrated
    best = found.strongest("calm", [1, 2])
    bank.save(tmp_path / "bank.safetensors")
    again = es.Bank.load(tmp_path / "bank.safetensors")
    if best is None:
        with pytest.raises(ValueError, match="no strength tried for 'calm'"):
            es.steer(model, again, "calm", "auto", layers=[1, 2])
        return
    steering = es.steer(model, again, ["calm", None, es.ablate("proud")], "auto", layers=[1, 2])
    assert steering.programs[0] == es.add("calm", best.strength)
    steering.set(1, "calm", "auto")
    assert steering.programs[1] == es.add("calm", best.strength)


def test_auto_without_a_calibration(calibrated):
    model, _, bank, _ = calibrated
    with pytest.raises(ValueError, match=r"'proud' has not been calibrated.*es\.calibrate\(model, tok, bank"):
        es.steer(model, bank, "proud", "auto", layers=[1])
    with pytest.raises(ValueError, match=r"not been calibrated for layers \[3\]"):
        es.steer(model, bank, "calm", "auto", layers=[3])
    with pytest.raises(ValueError, match="a number or \"auto\", got 'strong'"):
        es.steer(model, bank, "calm", "strong", layers=[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"concepts": "clam"}, "calm"),
        ({"strengths": [0.1, 0.0]}, "strengths must be finite numbers other than 0"),
        ({"strengths": []}, "at least one"),
        ({"openings": []}, "at least one entry"),
        ({"max_new_tokens": 0}, "max_new_tokens and batch_rows must be at least 1"),
    ],
)
def test_bad_arguments(tiny_llama, arguments, message):
    model, tok = tiny_llama
    with pytest.raises(ValueError, match=message):
        es.calibrate(model, tok, random_bank(model), **{"concepts": "calm", **arguments})


def test_plot(calibrated, tmp_path):
    pytest.importorskip("matplotlib")
    calibrated[3].plot(tmp_path / "calibration.png")
    assert (tmp_path / "calibration.png").stat().st_size > 10_000
