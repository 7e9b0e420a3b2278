"""Padding is known although a model's text part is handed a prepared mask, or none."""

import inspect

import pytest
import torch

import emosteer as es
from emosteer.models.blocks import find_decoder

from .conftest import padded, random_bank, streams
from .tiny import tiny, tiny_vision_language

IDS, MASK = padded([[5, 6], [8, 9, 10, 11, 12]])


@pytest.mark.parametrize("make", [lambda: tiny("rwkv"), lambda: tiny_vision_language("gemma3")])
def test_padding_is_left_alone(make):
    """One takes no mask, the other gets one mask a kind of attention."""
    model = make()
    bank = random_bank(model)

    def stream(program):
        steering = es.steer(model, bank, program, 0.5, layers=[0], fused=False)
        with steering, streams(model) as seen, torch.no_grad():
            model(input_ids=IDS, attention_mask=MASK)
        return seen[0][0]

    clean, steered = stream(None), stream("calm")
    assert torch.equal(steered[0, :3], clean[0, :3])
    assert ((steered - clean).norm(dim=-1)[MASK.bool()] > 0.1).all()


def test_signatures_stay(model, bank):
    """`generate` asks a model which arguments it takes."""
    before = inspect.signature(model.forward)
    with es.steer(model, bank, "calm", 0.1):
        assert inspect.signature(model.forward) == before


def test_a_mask_is_not_remembered(model, bank):
    """The stack called by itself after the model had a mask knows of no padding."""
    stack = find_decoder(model).stack
    with torch.no_grad(), es.steer(model, bank, "calm", 0.5, layers=[0]):
        expected = stack(input_ids=IDS).last_hidden_state
        model(input_ids=IDS, attention_mask=MASK)
        assert torch.equal(stack(input_ids=IDS).last_hidden_state, expected)
