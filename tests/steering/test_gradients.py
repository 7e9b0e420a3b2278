"""Gradients flow through a steered model: to its inputs, its weights and to a vector being trained."""

import pytest
import torch

import emosteer as es
from emosteer import ops

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def test_gradients_of_the_weights_are_those_of_the_plain_formula(model, bank):
    """Against a hook that computes the same with autograd's own operations."""
    v, scale = bank.directions[1][0], bank.scale[1]

    def hook(block, args, output):
        y = output + 0.3 * scale * v
        return y * (output.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True))

    def gradients():
        model.zero_grad()
        model(input_ids=IDS).logits.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    handle = model.model.layers[1].register_forward_hook(hook)
    expected = gradients()
    handle.remove()
    with es.steer(model, bank, ["calm", "calm"], 0.3, layers=[1]):
        got = gradients()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("program", [es.add("calm", 0.3), es.cap("angry", 0.0), es.rotate("proud", 20)])
def test_with_and_without_gradients_alike(model, bank, program):
    with es.steer(model, bank, program, layers="all"):
        with torch.no_grad():
            expected = model(input_ids=IDS).logits
        got = model(input_ids=IDS).logits
    assert got.requires_grad
    torch.testing.assert_close(got.detach(), expected, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing(model, bank):
    def gradient():
        model.zero_grad()
        model(input_ids=IDS).logits.square().mean().backward()
        return model.model.embed_tokens.weight.grad.clone()

    model.train()
    with es.steer(model, bank, "calm", 0.3, layers="all"):
        expected = gradient()
        model.gradient_checkpointing_enable()
        got = gradient()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)


def test_training_a_vector_by_backpropagation(model, bank):
    """The example of the documentation: a direction that makes the model say one token.

    The direction is trained through the operation itself, at one block, with frozen weights; put into
    a bank afterwards, the patch does what the training saw.
    """
    target, layer = 42, 2
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    raw = torch.nn.Parameter(
        torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    )
    table = ops.SteerTable.empty(1)
    table.direction[0, 0], table.strength[0, 0], table.preserve_norm[0] = 0, 0.8, 1
    scale = bank.scale[layer]

    def hook(block, args, output):
        return ops.steer(output, raw / raw.norm(), table, scale=scale)

    def loss():
        return -model(input_ids=IDS).logits[:, -1].log_softmax(-1)[:, target].mean()

    optimiser = torch.optim.Adam([raw], lr=0.2)
    handle = model.model.layers[layer].register_forward_hook(hook)
    first = loss().item()
    for _ in range(40):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
    trained = loss().item()
    handle.remove()
    assert trained < first - 0.5

    learned = es.Bank(["says 42"], {layer: raw.detach()}, scale={layer: scale})
    with torch.no_grad(), es.steer(model, learned, "says 42", 0.8, layers=[layer]):
        assert loss().item() == pytest.approx(trained, rel=1e-3)


def test_a_strength_can_be_trained(model, bank):
    """`ops.steer` has a gradient for the strengths of the table too."""
    layer = 1
    table = ops.SteerTable.empty(2)
    table.direction[:, 0], table.preserve_norm[:] = 0, 1
    table.strength.requires_grad_(True)
    hidden = torch.randn(2, 3, model.config.hidden_size)
    ops.steer(hidden, bank.directions[layer], table, scale=2.0).square()[..., 0].sum().backward()
    assert table.strength.grad is not None
    assert bool((table.strength.grad[:, 0] != 0).all())
