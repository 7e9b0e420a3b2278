"""Leaving a steering gives back the very model that was there, whatever happened inside."""

import threading

import pytest
import torch

import emosteer as es
from emosteer.models.forwards import BlockForward

from .conftest import random_bank


def leftovers(model):
    """Every instance attribute of every module, by identity."""
    return {
        (name, key): id(value)
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        if not key.startswith("_")
    } | {(name, "forward"): id(m.__dict__.get("forward")) for name, m in model.named_modules()}


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def test_leaves_nothing(model, bank):
    before, expected = leftovers(model), logits(model, IDS)
    with es.steer(model, bank, "calm", 0.3, layers="all"):
        assert not torch.equal(logits(model, IDS), expected)
    assert leftovers(model) == before
    assert torch.equal(logits(model, IDS), expected)


def test_training_mode_stays_as_it_was(model, bank):
    """Modules in training mode and modules frozen in evaluation mode, each as before."""
    model.train()
    model.model.layers[2].eval()
    before = {name: module.training for name, module in model.named_modules()}
    with es.steer(model, bank, "calm", 0.3, layers="all"):
        assert {name: module.training for name, module in model.named_modules()} == before
    assert {name: module.training for name, module in model.named_modules()} == before


def test_restores_after_an_exception_inside(model, bank):
    before, expected = leftovers(model), logits(model, IDS)
    with pytest.raises(KeyError), es.steer(model, bank, "calm", 0.3):
        raise KeyError("user code")
    assert leftovers(model) == before
    assert torch.equal(logits(model, IDS), expected)


def test_restores_after_an_exception_in_the_forward_pass(model, bank):
    expected = logits(model, IDS)
    with pytest.raises(ValueError, match="3 programs"), es.steer(model, bank, ["calm", None, "angry"], 0.3):
        logits(model, IDS)  # a batch of 2
    assert torch.equal(logits(model, IDS), expected)


def test_an_error_while_attaching_leaves_no_patch(model, bank, monkeypatch):
    before = leftovers(model)
    with es.steer(model, bank, "calm", 0.3):
        pass  # the probe has been passed
    patched = []

    def fails_at_the_third(block, *_args):
        patched.append(block)
        if len(patched) == 3:
            raise RuntimeError("no")

    monkeypatch.setattr(BlockForward, "steers", fails_at_the_third)
    steering = es.steer(model, bank, "calm", 0.3, layers="all")
    with pytest.raises(RuntimeError, match="no"):
        steering.attach()
    assert len(patched) == 3
    assert leftovers(model) == before


def test_keeps_an_instance_forward_of_the_user(model, bank):
    block = model.model.layers[1]
    inner = block.forward
    calls = []

    def mine(*args, **kwargs):
        calls.append(1)
        return inner(*args, **kwargs)

    block.forward = mine
    with es.steer(model, bank, "calm", 0.3, layers="all"):
        calls.clear()
        logits(model, IDS)
        assert calls == [1]
    assert block.__dict__["forward"] is mine


def test_can_be_entered_again(model, bank):
    steering = es.steer(model, bank, "calm", 0.3)
    expected = logits(model, IDS)
    with steering:
        first = logits(model, IDS)
    assert torch.equal(logits(model, IDS), expected)
    with steering:
        assert torch.equal(logits(model, IDS), first)
        with pytest.raises(RuntimeError, match="attached already"):
            steering.attach()


def test_nested_steerings_add_up(model, bank):
    both = es.add("calm", 0.2, preserve_norm=False) + es.add("angry", 0.3, preserve_norm=False)
    with es.steer(model, bank, both, layers=[1, 2]):
        expected = logits(model, IDS)
    outer = es.steer(model, bank, "calm", 0.2, layers=[1, 2], preserve_norm=False)
    inner = es.steer(model, bank, "angry", 0.3, layers=[1, 2], preserve_norm=False)
    with outer:
        alone = logits(model, IDS)
        with inner:
            torch.testing.assert_close(logits(model, IDS), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(logits(model, IDS), alone)


def test_left_in_the_wrong_order(model, bank):
    before, expected = leftovers(model), logits(model, IDS)
    outer = es.steer(model, bank, "calm", 0.2).attach()
    inner = es.steer(model, bank, "angry", 0.3).attach()
    outer.detach()
    inner_alone = logits(model, IDS)
    inner.detach()
    with es.steer(model, bank, "angry", 0.3, fused=False):
        torch.testing.assert_close(logits(model, IDS), inner_alone, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model, IDS), expected)
    assert leftovers(model) == before


def test_two_models_at_once(model, bank):
    import copy

    other = copy.deepcopy(model)
    with es.steer(model, bank, "calm", 0.2):
        a = logits(model, IDS)
    with es.steer(other, bank, "angry", 0.3):
        b = logits(other, IDS)
    with es.steer(model, bank, "calm", 0.2), es.steer(other, random_bank(other), "angry", 0.3):
        assert torch.equal(logits(model, IDS), a)
        assert torch.equal(logits(other, IDS), b)


def test_threads_share_a_steered_model(model, bank):
    """Each thread has a batch of its own size and padding; none sees another's token rows."""
    steering = es.steer(model, bank, "calm", 0.3, positions=slice(1, None))
    inputs = [torch.randint(5, 250, (b, t)) for b, t in ((1, 9), (2, 5), (3, 7), (4, 3))]
    with steering:
        expected = [logits(model, ids) for ids in inputs]
        wrong = []

        def work(k):
            for _ in range(20):
                if not torch.allclose(logits(model, inputs[k]), expected[k], atol=1e-5):
                    wrong.append(k)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_saved_weights_are_clean(model, bank, tmp_path):
    from transformers import AutoModelForCausalLM

    expected = logits(model, IDS)
    with es.steer(model, bank, "calm", 0.3):
        model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again, IDS), expected)
