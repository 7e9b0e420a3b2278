"""What each program does to the residual stream, against fp64 on the stream captured after the block."""

import math

import pytest
import torch

import emosteer as es
from emosteer import ops

from .conftest import random_bank, streams

PROGRAMS = {
    "add": es.add("calm", 0.3),
    "add, norm not preserved": es.add("calm", 0.3, preserve_norm=False),
    "ablate": es.ablate("calm"),
    "cap": es.cap("calm", -0.2),
    "floor": es.floor("angry", 0.2),
    "hold": es.hold("joyful", 0.1),
    "hold, norm not preserved": es.hold("joyful", 0.1, preserve_norm=False),
    "rotate": es.rotate("desperate", 25),
    "rotate away": es.rotate("desperate", -40),
    "several": es.add("calm", 0.2) + es.cap("angry", 0.0) + es.floor("proud", 0.1),
    "four adds": es.add("calm", 0.1) + es.add("angry", -0.2) + es.add("proud", 0.3) + es.add("weary", 0.1),
}


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.model)])
def case(request):
    """`(model, bank, ids, block)`; the unit is the mean norm of the stream there."""
    if request.param == "smollm2":
        model, tokenizer = request.getfixturevalue("smollm2")
        ids = tokenizer("The old harbour lay quiet while the boats came in.", return_tensors="pt").input_ids
        layer = 14
    else:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64,
                hidden_size=48,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                initializer_range=0.3,
            )
        ).eval()
        ids, layer = torch.randint(0, 64, (1, 12)), 1
    with torch.no_grad(), streams(model) as seen:
        model(input_ids=ids)
    return model, random_bank(model, scale=float(seen[0][layer].norm(dim=-1).mean())), ids, layer


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", PROGRAMS)
def test_gives_the_reference(case, name, fused, relative):
    model, bank, ids, layer = case
    program = PROGRAMS[name]
    with torch.no_grad():
        with streams(model) as seen:
            model(input_ids=ids)
        before = seen[0][layer].clone()
        steering = es.steer(model, bank, program, layers=layer, fused=fused, relative=relative)
        with steering, streams(model) as seen:
            model(input_ids=ids)
        after = seen[0][layer]
        scale = 1.0 if relative else bank.scale[layer]
        with ops.backend("reference"):
            expected = ops.steer(
                before.double(), bank.directions[layer].double(), steering.table, scale=scale
            )
    error = (after.double() - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < 2e-6
    assert not torch.equal(after, before)
    if program.preserve_norm is not False:
        torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-5, atol=0)


def test_bounds_hold_in_the_stream(case):
    """A cap of 0 units and a floor of 0.1 are where they were put, although the norm is kept."""
    model, bank, ids, layer = case
    unit = bank.scale[layer]
    with torch.no_grad(), es.steer(model, bank, es.cap("calm", -0.05), layers=layer), streams(model) as seen:
        model(input_ids=ids)
    p = seen[0][layer].double() @ bank.directions[layer][bank.index("calm")].double()
    assert (p <= (-0.05 + 1e-5) * unit).all()


def test_rotation_is_by_the_angle(case):
    model, bank, ids, layer = case
    v = bank.directions[layer][bank.index("desperate")].double()

    def angle(x):
        return torch.rad2deg(torch.acos(x.double() @ v / x.double().norm(dim=-1)))

    with torch.no_grad():
        with streams(model) as seen:
            model(input_ids=ids)
        before = angle(seen[0][layer])
        with es.steer(model, bank, es.rotate("desperate", 25), layers=layer), streams(model) as seen:
            model(input_ids=ids)
    torch.testing.assert_close(angle(seen[0][layer]), before - 25, rtol=0, atol=2e-2)


def test_an_unreached_cap_changes_nothing(model, bank):
    ids = torch.randint(5, 250, (2, 6))
    with torch.no_grad():
        with es.steer(model, bank, None, layers="all"):
            idle = model(input_ids=ids).logits
        with es.steer(model, bank, es.cap("calm", 1e6) + es.floor("angry", -1e6), layers="all"):
            assert torch.equal(model(input_ids=ids).logits, idle)
        with es.steer(model, bank, None, layers="all", fused=False):
            unfused = model(input_ids=ids).logits
        assert torch.equal(unfused, model(input_ids=ids).logits)


def test_hidden_states_show_the_steered_stream(model, bank):
    ids = torch.randint(5, 250, (2, 6))
    with torch.no_grad():
        for fused in (True, False):
            with es.steer(model, bank, "calm", 0.5, layers=[1], fused=fused), streams(model) as seen:
                states = model(input_ids=ids, output_hidden_states=True).hidden_states
            assert torch.equal(states[2], seen[0][1])
            assert not torch.equal(
                states[2], model(input_ids=ids, output_hidden_states=True).hidden_states[2]
            )


def test_programs_combine():
    program = es.add("calm", 0.1) + es.cap("angry", 0.0)
    assert program.names == ("calm", "angry")
    assert program.norm_form() == 2
    assert es.add("calm", 0.1).norm_form() == 1
    assert es.add("calm", 0.1, preserve_norm=False).norm_form() == 0
    assert (2 * program).slots[0].strength == pytest.approx(0.2)
    assert (2 * program).slots[1].high == 0.0
    assert es.rotate("calm", 90).slots[0].rotate == pytest.approx(math.pi / 2)
    assert str(program) == "calm +0.1 + angry ≤ 0"
    with pytest.raises(ValueError, match="preserve_norm is True in one part"):
        es.add("calm", 1, preserve_norm=True) + es.add("angry", 1, preserve_norm=False)
    with pytest.raises(ValueError, match="strength must be a finite number, got nan"):
        es.add("calm", float("nan"))
    with pytest.raises(TypeError, match="high must be a number"):
        es.cap("calm", "much")
    with pytest.raises(ValueError, match="degrees must lie in"):
        es.rotate("calm", 270)
