"""TransformerLens' bridges with hooks of their users' own, alone against accelerated."""

import copy
from contextlib import contextmanager

import pytest
import torch

import emosteer as es
from emosteer.ops import backends

from .differential import DTYPES, assert_as_good

pytest.importorskip("transformer_lens")
from transformer_lens import TransformerBridge
from transformer_lens.model_bridge.generalized_components.normalization import NormalizationBridge

IDS = torch.arange(24).view(3, 8) + 40
VECTOR = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(0)), dim=0)
PLACES = ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]


def add(resid, hook):
    return resid + 2 * VECTOR.to(resid.dtype)


def add_in_place(resid, hook):
    resid[:, 2:] += 2 * VECTOR.to(resid.dtype)
    return resid


def ablate(resid, hook):
    v = VECTOR.to(resid.dtype)
    return resid - (resid @ v)[..., None] * v


@pytest.fixture
def bridged(tiny_llama):
    """dtype → a bridge around a copy of the tiny model."""
    model, tokenizer = tiny_llama
    return lambda dtype=torch.float32: bridge(copy.deepcopy(model).to(dtype), tokenizer)


def bridge(model, tokenizer):
    """Without a token for the beginning, for which the library would load the tokenizer by name again."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = None
    return TransformerBridge.boot_transformers(
        "a tiny model", hf_model=model, tokenizer=tokenizer, device="cpu", dtype=model.dtype
    )


@contextmanager
def norms_run(monkeypatch):
    """Count the norms that the kernel computes."""
    calls, run = [], backends.of(torch.device("cpu")).rms_norm
    with monkeypatch.context() as patch:
        patch.setattr(
            backends.of(torch.device("cpu")), "rms_norm", lambda x, *args: calls.append(1) or run(x, *args)
        )
        yield calls


def steered(model, hook, ids=IDS, **kwargs):
    with torch.no_grad():
        return model.run_with_hooks(ids, fwd_hooks=[(place, hook) for place in PLACES], **kwargs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hook", [add, add_in_place, ablate])
def test_forward(bridged, monkeypatch, dtype, hook):
    exact = steered(bridged(torch.float64), hook)
    model = bridged(dtype)
    with norms_run(monkeypatch) as calls:
        alone = steered(model, hook)
        assert not calls
        with es.accelerate("transformer-lens"):
            fast = steered(model, hook)
        assert len(calls) == 9
    with torch.no_grad():
        assert_as_good(fast, alone, exact, model(IDS) if dtype is torch.float32 else None)


def test_generate(bridged):
    model = bridged()

    def run():
        with torch.no_grad(), model.hooks(fwd_hooks=[(place, add) for place in PLACES]):
            return model.generate(IDS[:1], max_new_tokens=8, do_sample=False, verbose=False)

    alone = run()
    with es.accelerate("transformer-lens"):
        fast = run()
    assert torch.equal(torch.as_tensor(alone), torch.as_tensor(fast))


@pytest.mark.parametrize("place", ["hook_scale", "hook_normalized"])
def test_hooks_inside_a_norm_see_what_they_would(bridged, place):
    model = bridged()
    seen = []

    def look(value, hook):
        seen.append(value.clone())

    def double(value, hook):
        return 2 * value

    with torch.no_grad(), pytest.warns(UserWarning, match="edited"):
        alone = model.run_with_hooks(IDS, fwd_hooks=[(f"blocks.1.ln1.{place}", double)])
    with torch.no_grad():
        model.run_with_hooks(IDS, fwd_hooks=[(f"blocks.0.ln1.{place}", look)])
    with es.accelerate("transformer-lens"), torch.no_grad():
        model.run_with_hooks(IDS, fwd_hooks=[(f"blocks.0.ln1.{place}", look)])
        with pytest.warns(UserWarning, match="edited"):
            fast = model.run_with_hooks(IDS, fwd_hooks=[(f"blocks.1.ln1.{place}", double)])
    assert torch.equal(*seen)
    torch.testing.assert_close(fast, alone, rtol=1e-4, atol=1e-4)


def test_the_cache_is_complete(bridged):
    model = bridged()
    with torch.no_grad():
        _, alone = model.run_with_cache(IDS)
        with es.accelerate("transformer-lens"):
            _, fast = model.run_with_cache(IDS)
    assert set(fast.keys()) == set(alone.keys())
    for name in alone:
        torch.testing.assert_close(fast[name], alone[name], rtol=1e-4, atol=1e-4)


def test_gradients_are_the_librarys(bridged):
    model = bridged()

    def run():
        model.zero_grad()
        model.run_with_hooks(IDS, fwd_hooks=[(place, add) for place in PLACES]).square().mean().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    alone = run()
    with es.accelerate("transformer-lens"):
        fast = run()
    assert len(alone) == len(fast) > 0
    assert all(map(torch.equal, alone, fast))


def test_changed_weights_and_dtypes_are_seen(bridged):
    model = bridged()
    before = steered(model, add)
    with es.accelerate("transformer-lens"):
        steered(model, add)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # the norms'
                    parameter.mul_(1.5)
        fast = steered(model, add)
    alone = steered(model, add)
    assert not torch.allclose(alone, before, rtol=0.1)
    torch.testing.assert_close(fast, alone, rtol=1e-4, atol=1e-4)
    with es.accelerate("transformer-lens"):
        half = steered(model.to(torch.bfloat16), add)
    assert half.dtype is torch.bfloat16
    alone = steered(model, add)
    assert_as_good(half, alone, steered(model.to(torch.float64), add))


def test_layer_norms_are_the_librarys(tiny_gpt2):
    model = bridge(*tiny_gpt2)
    alone = steered(model, add)
    with es.accelerate("transformer-lens"):
        assert torch.equal(steered(model, add), alone)


def test_undone(bridged):
    name = "_hf_autograd_forward_with_hooks"
    before = vars(NormalizationBridge)[name]
    model = bridged()
    alone = steered(model, ablate)
    with es.accelerate("transformer-lens"):
        assert vars(NormalizationBridge)[name] is not before
    assert vars(NormalizationBridge)[name] is before
    assert torch.equal(steered(model, ablate), alone)


@pytest.mark.model
def test_smollm2(smollm2):
    model, tokenizer = smollm2
    model = TransformerBridge.boot_transformers(
        "HuggingFaceTB/SmolLM2-135M", hf_model=copy.deepcopy(model), tokenizer=tokenizer, device="cpu"
    )
    ids = tokenizer("The weather this morning", return_tensors="pt").input_ids
    vector = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    hooks = [(f"blocks.{layer}.hook_resid_post", lambda x, hook: x + vector / 4) for layer in range(10, 20)]

    def run():
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            tokens = model.generate(ids, max_new_tokens=12, do_sample=False, verbose=False)
            return torch.as_tensor(tokens), model(ids)

    tokens, logits = run()
    with es.accelerate("transformer-lens"):
        fast, close = run()
    assert torch.equal(tokens, fast)
    torch.testing.assert_close(close, logits, rtol=1e-3, atol=1e-3)
