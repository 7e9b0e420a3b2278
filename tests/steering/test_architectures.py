"""Every architecture, found by its structure: idle it is untouched, steered it is the fp64 reference."""

from __future__ import annotations

import pytest
import torch

import emosteer as es
from emosteer import ops
from emosteer.models.blocks import find_decoder
from emosteer.models.patching import first_tensor

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


def passed(model, steering):
    """What each block was called with and what it left, once the pass was over: `[(call, stream)]`.

    Tensors are not copied, so what is written into them inside the next norm shows.
    """
    calls = []

    def record(block, args, kwargs, output):
        calls.append((block, args, kwargs, first_tensor(output)))

    with steering:
        hooks = [b.register_forward_hook(record, with_kwargs=True) for b in find_decoder(model).blocks]
        try:
            logits(model)
        finally:
            for hook in hooks:
                hook.remove()
    return calls


def assert_steered_as_the_reference(model, bank, steering, tolerance=2e-5):
    """Each block's stream against the definition, in fp64, on what that block gives unsteered."""
    row = torch.where(MASK.bool(), torch.arange(len(MASK))[:, None], -1).to(torch.int32)
    for layer, (block, args, kwargs, after) in enumerate(passed(model, steering)):
        with torch.no_grad(), ops.backend("reference"):
            before = first_tensor(block(*args, **kwargs))
            expected = ops.steer(
                before.double(), bank.directions[layer].double(), steering.table, row, scale=bank.scale[layer]
            )
        error = ((after.double() - expected).norm(dim=-1) / expected.norm(dim=-1))[MASK.bool()]
        assert error.max() < tolerance, f"block {layer}: {error}"
        torch.testing.assert_close(after[~MASK.bool()], before[~MASK.bool()], rtol=1e-4, atol=1e-4)
        moved = (after - before).norm(dim=-1)[MASK.bool()]
        assert moved.min() > 1e-2, f"block {layer} was not steered: {moved}"


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
    assert_steered_as_the_reference(model, bank, steering)


def test_generates(model, bank):
    ids, mask = IDS[:, -3:], torch.ones_like(IDS[:, -3:])
    with es.steer(model, bank, PROGRAMS, layers="all") as steering:
        fused = greedy(model, ids, mask)
        assert len(steering.report().splitlines()) == 4
    with es.steer(model, bank, PROGRAMS, layers="all", fused=False):
        assert torch.equal(greedy(model, ids, mask), fused)
    assert not torch.equal(greedy(model, ids, mask), fused)


def greedy(model, ids, mask):
    """Scores of 4 greedy tokens."""
    return model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
    )
