"""The norms of a steered model on the kernel: the same numbers, and nothing left over."""

import copy

import pytest
import torch

from emosteer.compat.kernel_norms import KernelNorms
from emosteer.compat.replacing import Replacements

from .differential import DTYPES, assert_as_good

IDS = torch.arange(20).view(2, 10) + 40


@pytest.fixture
def norms():
    replaced = Replacements("a library")
    yield KernelNorms(replaced)
    replaced.undo()


def patched(model):
    return sum("forward" in module.__dict__ for module in model.modules())


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_numbers(tiny_llama, norms, dtype):
    model = tiny_llama[0].to(dtype)
    alone, exact = logits(model), logits(copy.deepcopy(model).double())
    with norms.hold(model):
        assert patched(model) == 9
        assert_as_good(logits(model), alone, exact)
    assert patched(model) == 0
    assert torch.equal(logits(model), alone)


def test_as_long_as_anybody_wants_it(tiny_llama, norms):
    model, _ = tiny_llama
    first, second = norms.hold(model), norms.hold(model)
    first.remove()
    first.remove()
    assert patched(model) == 9
    second.remove()
    assert patched(model) == 0


def test_gradients_are_the_models(tiny_llama, norms):
    model, _ = tiny_llama
    model(IDS).logits.square().mean().backward()
    alone = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with norms.hold(model):
        model(IDS).logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, alone[name]), name


def test_a_copy_computes_with_its_own_weights(tiny_llama, norms):
    model, _ = tiny_llama
    with norms.hold(model):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.model.norm.weight.mul_(2)
        doubled = 2 * logits(model)
        torch.testing.assert_close(logits(other), doubled, rtol=1e-4, atol=1e-4)
    # The copy was made of a patched model, and outlives its patches.
    torch.testing.assert_close(logits(other), doubled, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


def test_undone_while_held(tiny_llama):
    model, _ = tiny_llama
    alone = logits(model)
    replaced = Replacements("a library")
    hold = KernelNorms(replaced).hold(model)
    replaced.undo()
    assert patched(model) == 0
    assert torch.equal(logits(model), alone)
    hold.remove()


def test_other_norms_and_float64_are_left_alone(tiny_gpt2, tiny_llama, norms):
    for model in (tiny_gpt2[0], copy.deepcopy(tiny_llama[0]).double()):
        with norms.hold(model):
            assert patched(model) == 0
