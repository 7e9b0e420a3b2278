"""lm-eval's model `steered` alone against accelerated."""

import copy

import pytest
import torch

import emosteer as es

from .differential import DTYPES, assert_as_good, both, kernels_run

hf_steered = pytest.importorskip("lm_eval.models.hf_steered")


def direction(seed=0):
    return torch.randn(32, generator=torch.Generator().manual_seed(seed))


CONFIGS = {
    "add": {"steering_vector": direction(), "steering_coefficient": 1.5, "action": "add"},
    "clamp": {"steering_vector": direction(), "steering_coefficient": 2.0, "action": "clamp"},
    "clamp with bias": {
        "steering_vector": direction(),
        "steering_coefficient": 2.0,
        "action": "clamp",
        "bias": direction(1),
    },
}
PLACES = ["layers.1", "layers.2.mlp"]


def steered(model, tokenizer, config, tmp_path, places=PLACES):
    path = tmp_path / "steer.pt"
    torch.save(dict.fromkeys(places, config), path)
    return hf_steered.SteeredModel(
        pretrained=copy.deepcopy(model), tokenizer=tokenizer, steer_path=str(path), device="cpu", batch_size=1
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_forward(tiny_llama, tmp_path, dtype, name):
    model, tokenizer = tiny_llama
    ids = torch.arange(20).view(2, 10) + 40

    def logits(dtype):
        return steered(model.to(dtype), tokenizer, CONFIGS[name], tmp_path).forward(ids).logits

    exact = logits(torch.float64)
    alone, fast = both("lm-eval", lambda: logits(dtype))
    assert_as_good(fast, alone, exact)


@pytest.mark.parametrize("name", CONFIGS)
def test_requests(tiny_llama, tmp_path, name):
    from lm_eval.api.instance import Instance

    lm = steered(*tiny_llama, CONFIGS[name], tmp_path)
    scored = [
        Instance("loglikelihood", {}, (context, " and so on"), 0)
        for context in ("The sea", "A dog barked at")
    ]
    asked = {"until": ["</s>"], "max_gen_toks": 8, "do_sample": False}
    written = [Instance("generate_until", {}, ("Hello there", asked), 0)]
    alone, fast = both("lm-eval", lambda: (lm.loglikelihood(scored), lm.generate_until(written)))
    assert alone[1] == fast[1]
    for (theirs, greedy), (ours, ours_greedy) in zip(alone[0], fast[0]):
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert greedy == ours_greedy


def test_one_head_falls_back(tiny_llama, tmp_path):
    lm = steered(*tiny_llama, CONFIGS["add"], tmp_path, ["layers.1"])
    four = torch.randn(1, 3, 2, 16)
    hook = hf_steered.partial(hf_steered.SteeredModel.add, vector=torch.ones(16), head_index=1)
    said = pytest.warns(UserWarning, match="attention head")
    with (
        es.accelerate("lm-eval"),
        kernels_run() as calls,
        said,
        hf_steered.steer(lm.model, {"layers.1": hook}),
    ):
        lm.model.base_model.layers[1]._forward_hooks[
            next(iter(lm.model.base_model.layers[1]._forward_hooks))
        ](None, (), four)
    assert not calls


def test_a_place_that_is_not_there(tiny_llama, tmp_path):
    lm = steered(*tiny_llama, CONFIGS["add"], tmp_path, ["layers.9"])
    for names in ((), ("lm-eval",)):
        handle = es.accelerate(*names) if names else None
        with pytest.raises(ValueError, match="Not all hookpoints"):
            lm.forward(torch.arange(5)[None])
        if handle:
            handle.undo()


def test_undone(tiny_llama, tmp_path):
    before = hf_steered.steer
    lm = steered(*tiny_llama, CONFIGS["add"], tmp_path)
    ids = torch.arange(10)[None] + 40
    alone = lm.forward(ids).logits
    with es.accelerate("lm-eval"):
        assert hf_steered.steer is not before
    assert hf_steered.steer is before
    assert torch.equal(lm.forward(ids).logits, alone)
