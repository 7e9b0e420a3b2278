"""A whole decode step of a steered model in one CUDA graph."""

import pytest
import torch

import emosteer as es
from tests.steering.conftest import CONCEPTS, random_bank

from .stub import captured, waits

BATCH = 4


@pytest.fixture
def model(tiny_llama, device):
    return tiny_llama[0].to(device, torch.bfloat16)


def rewinding(cache):
    """Sets a static cache back to what it holds now: it advances by itself, in a replay as in a call."""
    held = [
        (
            layer,
            {name: value.clone() for name, value in vars(layer).items() if isinstance(value, torch.Tensor)},
        )
        for layer in cache.layers
    ]

    def rewind():
        for layer, values in held:
            for name, value in values.items():
                getattr(layer, name).copy_(value)

    return rewind


@pytest.mark.parametrize("fused", [True, False])
def test_programs_change_between_replays(model, device, fused):
    """Captured once, with a static cache; each row's program is set anew and the model follows."""
    from transformers import StaticCache

    bank = random_bank(model)
    cache = StaticCache(config=model.config, max_cache_len=32)
    prompt = torch.arange(BATCH * 6, device=device).view(BATCH, 6) % 200 + 3
    token = torch.full((BATCH, 1), 7, device=device)
    at = torch.tensor([6], device=device)

    def step():
        return model(token, past_key_values=cache, cache_position=at, use_cache=True).logits

    programs = [es.add(CONCEPTS[i], 0.2) for i in range(BATCH)]
    with torch.no_grad(), es.steer(model, bank, programs, layers="all", fused=fused) as steering:
        model(prompt, past_key_values=cache, use_cache=True)
        rewind = rewinding(cache)
        replay, logits = captured(step)
        seen = []
        for program in (es.add("angry", 0.4), es.cap("calm", 0.0), es.ablate("joyful"), None):
            steering.set(1, program)
            rewind()
            replay()
            replayed = logits.clone()
            rewind()
            torch.testing.assert_close(replayed, step(), rtol=2e-2, atol=2e-2)
            seen.append(replayed)
        for other in seen[1:]:
            assert not torch.equal(seen[0][1], other[1])
            torch.testing.assert_close(seen[0][0], other[0], rtol=2e-2, atol=2e-2)


def test_a_step_waits_for_nothing(model, device):
    """Beyond what transformers itself waits for, in its masks for one."""
    bank = random_bank(model)
    token = torch.full((BATCH, 1), 7, device=device)

    def step():
        model(token, use_cache=False)

    with torch.no_grad():
        step()
        before = waits(step)
        with es.steer(model, bank, [es.add(c, 0.1) for c in CONCEPTS[:BATCH]], layers="all"):
            for _ in range(2):
                step()
            steered = waits(step)
    assert len(steered) <= len(before), steered


def test_restored_to_the_bit(model, device):
    bank, tokens = random_bank(model), torch.arange(12, device=device)[None] + 3
    with torch.no_grad():
        before = model(tokens).logits
        with es.steer(model, bank, "calm", 0.5):
            assert not torch.equal(model(tokens).logits, before)
        assert torch.equal(model(tokens).logits, before)
