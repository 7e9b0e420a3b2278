"""Every architecture, found by its structure: idle it is untouched, steered it is the fp64 reference."""

import pytest
import torch
from torch import nn

import emosteer as es
from emosteer.models.blocks import find_decoder

from .against_reference import assert_as_the_reference
from .conftest import padded, random_bank
from .test_restore import leftovers
from .tiny import DECODERS, tiny

PROGRAMS = [es.add("calm", 0.3), es.cap("angry", -0.1) + es.add("joyful", 0.2), es.rotate("weary", 20)]
IDS, MASK = padded([[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15, 16, 17, 18, 19]])


@pytest.fixture(scope="module", params=DECODERS)
def model(request):
    return tiny(request.param)


@pytest.fixture(scope="module")
def bank(model):
    return random_bank(model)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits


def greedy(model):
    return model.generate(
        input_ids=IDS[:, -3:],
        attention_mask=MASK[:, -3:],
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
    )


@pytest.mark.parametrize("fused", [True, False])
def test_idle_is_untouched_and_nothing_is_left(model, bank, fused):
    """Unfused, bit for bit; fused, but for the rounding of the norms that the kernel computes."""
    expected, before = logits(model), leftovers(model)
    assert torch.equal(logits(model), expected)
    own = {key for key, value in leftovers(model).items() if value != before.get(key)}  # recurrent states
    with es.steer(model, bank, [None] * 3, layers="all", fused=fused):
        idle = logits(model)
        if fused:
            torch.testing.assert_close(idle, expected, rtol=1e-4, atol=1e-4)
        else:
            assert torch.equal(idle, expected)
    assert torch.equal(logits(model), expected)
    after = leftovers(model)
    assert {k: v for k, v in after.items() if k not in own} == {
        k: v for k, v in before.items() if k not in own
    }


@pytest.mark.parametrize("fused", [True, False])
def test_steered_is_the_reference(model, bank, fused):
    """Three rows of different lengths, padded on the left, each with a program of its own."""
    steering = es.steer(model, bank, PROGRAMS, layers="all", fused=fused)
    assert_as_the_reference(model, bank, steering, lambda: logits(model), MASK)


def test_generates(model, bank):
    """The same text fused and not, another than unsteered; the report has a line a block."""
    with es.steer(model, bank, PROGRAMS, layers="all") as steering:
        fused = greedy(model)
        assert len(steering.report().splitlines()) == find_decoder(model).depth + 1
    with es.steer(model, bank, PROGRAMS, layers="all", fused=False):
        assert torch.equal(greedy(model), fused)
    assert not torch.equal(greedy(model), fused)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "gpt2", "mamba", "qwen3_moe"])
def test_half_precision(name, dtype):
    """Rows of 16 bits, whatever the model keeps its stream in."""
    half = tiny(name).to(dtype)
    steering = es.steer(half, random_bank(half), PROGRAMS, layers="all")
    tolerance = 2e-2 if dtype == torch.bfloat16 else 3e-3
    assert_as_the_reference(half, random_bank(half), steering, lambda: logits(half), MASK, tolerance)


def test_an_encoder_decoder_is_refused():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=4)
    t5 = T5ForConditionalGeneration(config).eval()
    before = leftovers(t5)
    with pytest.raises(
        ValueError, match="T5ForConditionalGeneration is an encoder–decoder; emosteer steers decoders"
    ):
        find_decoder(t5)
    assert leftovers(t5) == before


class Bag(nn.Module):
    """Blocks that all read the embedding: no stream goes through them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.members = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        x = self.embed(input_ids)
        return sum(member(x) for member in self.members)


def test_a_model_without_a_chain_of_blocks_is_refused():
    with pytest.raises(ValueError, match=r"no chain of blocks was found in Bag: .*looked at members"):
        find_decoder(Bag())


def test_a_model_that_does_not_take_token_ids_is_refused():
    with pytest.raises(
        ValueError, match="Linear could not be run on token ids to find its blocks: TypeError"
    ):
        find_decoder(nn.Linear(2, 2))
