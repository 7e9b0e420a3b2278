"""dialz alone against dialz accelerated: it steers with repeng's modules, tested at length there."""

import numpy as np
import pytest
import torch

import emosteer as es

from .differential import both, cosine

dialz = pytest.importorskip("dialz")
from dialz import Dataset, SteeringModel, SteeringVector  # noqa: E402


@pytest.fixture
def folder(tiny_llama, tmp_path):
    """A folder to load from: dialz takes a name only, and loads in float16."""
    model, tokenizer = tiny_llama
    tokenizer.padding_side = "right"  # as dialz pads with token 0, which is a word here
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def vector():
    rng = np.random.default_rng(0)
    return SteeringVector("llama", {layer: rng.normal(size=32).astype(np.float32) for layer in range(4)})


@pytest.mark.parametrize("normalize", [False, True])
def test_steering(folder, normalize):
    ids = torch.arange(12)[None] + 40

    def run():
        model = SteeringModel(folder, [1, 2, -1])
        model.set_control(vector(), 0.5, normalize=normalize)
        with torch.no_grad():
            return model(input_ids=ids).logits.double()

    alone, fast = both("dialz", run)
    torch.testing.assert_close(fast, alone, rtol=2e-2, atol=2e-2)


def test_generate(folder):
    ids = torch.arange(12)[None] + 40
    model = SteeringModel(folder, [1, 2, -1])

    def run():
        model.set_control(vector(), 2.0)
        mask = torch.ones_like(ids)
        return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)

    alone, fast = both("dialz", run)
    assert alone.tolist() == fast.tolist()


@pytest.mark.parametrize("method", ["pca", "pca_center", "mean_diff"])
def test_train(folder, pairs, method):
    model = SteeringModel(folder, [1, 2])
    model.model.float()  # float16 would round away more than the bar
    dataset = Dataset()
    for pair in pairs:
        dataset.add_entry(*pair)
    alone = SteeringVector.train(model, dataset, method=method)
    with es.accelerate("dialz"):
        fast = SteeringVector.train(model, dataset, method=method)
    assert list(fast.directions) == list(alone.directions)
    for layer, direction in alone.directions.items():
        assert cosine(fast.directions[layer], direction) > 1 - 1e-5
