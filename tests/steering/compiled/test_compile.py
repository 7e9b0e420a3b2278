"""torch.compile before and after steering: one graph, programs switched without another."""

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounter

import emosteer as es

from ..conftest import padded, random_bank

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def logits(model, ids=IDS, **kwargs):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **kwargs).logits


def eager(model, bank, *args, **kwargs):
    with es.steer(model, bank, *args, **kwargs):
        return logits(model)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_before(model, bank, fullgraph):
    expected, clean = eager(model, bank, ["calm", "angry"], 0.3, layers="all"), logits(model)
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    torch.testing.assert_close(logits(compiled), clean, rtol=1e-4, atol=1e-4)
    with es.steer(compiled, bank, ["calm", "angry"], 0.3, layers="all"):
        torch.testing.assert_close(logits(compiled), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(compiled), clean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_compiled_while_steered(model, bank, fullgraph):
    expected, clean = eager(model, bank, ["calm", "angry"], 0.3, layers="all"), logits(model)
    with es.steer(model, bank, ["calm", "angry"], 0.3, layers="all"):
        compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
        torch.testing.assert_close(logits(compiled), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(compiled), clean, rtol=1e-4, atol=1e-4)


def test_programs_switch_without_a_recompile(model, bank):
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    switches = [
        ("calm", 0.3),
        (es.cap("angry", 0.0), None),
        (None, None),
        (es.rotate("proud", 20) + es.ablate("weary"), None),
    ]
    with es.steer(compiled, bank, ["calm", "angry"], 0.3, layers="all") as steering:
        logits(compiled)
        graphs = counter.frame_count
        assert graphs >= 1
        for program, strength in switches:
            steering.set(0, program, strength)
            got = logits(compiled)
            with torch.compiler.set_stance("force_eager"):
                torch.testing.assert_close(got, logits(compiled), rtol=1e-4, atol=1e-4)
        steering.set_all(["proud", "weary"], 0.2)
        logits(compiled)
        assert counter.frame_count == graphs


def test_steering_again_and_again_recompiles_a_bounded_number_of_times(model, bank):
    """Attaching changes the code that is compiled, so it costs a compilation; leaving it none."""
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    steering = es.steer(compiled, bank, ["calm", "angry"], 0.3, layers="all")
    clean = logits(compiled)
    for _ in range(3):
        with steering:
            steered = logits(compiled)
        assert torch.equal(logits(compiled), clean)
    assert not torch.equal(steered, clean)
    assert counter.frame_count <= 2 + 2


@pytest.mark.slow
@pytest.mark.full
def test_inductor(model, bank):
    """The default compiler, with a mask, left padding and positions."""
    ids, mask = padded([[5, 6, 7, 8], [9, 10]])
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    call = {"attention_mask": mask, "position_ids": position_ids}
    with es.steer(model, bank, ["calm", "angry"], 0.3, layers="all", positions=slice(1, None)):
        expected = logits(model, ids, **call)
    compiled = torch.compile(model, fullgraph=True)
    with es.steer(compiled, bank, ["calm", "angry"], 0.3, layers="all", positions=slice(1, None)) as steering:
        torch.testing.assert_close(logits(compiled, ids, **call), expected, rtol=1e-4, atol=1e-4)
        steering.set(1, es.ablate("proud"))
        changed = logits(compiled, ids, **call)
        torch.testing.assert_close(changed[0], expected[0], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(changed[1], expected[1], rtol=1e-3, atol=1e-3)


def test_generate_with_a_compiled_forward(model, bank, prompts):
    """StaticCache and a compiled decode step: what a fast generation loop does."""
    ids, mask = padded(prompts)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    programs = [es.add("calm", 0.3), None, es.ablate("proud"), es.add("angry", 0.2)]
    with es.steer(model, bank, programs, layers="all"):
        expected = model.generate(input_ids=ids, attention_mask=mask, **settings)
    forward = model.forward
    with es.steer(model, bank, programs, layers="all"):
        model.forward = torch.compile(model.forward, backend="eager")
        try:
            got = model.generate(
                input_ids=ids,
                attention_mask=mask,
                cache_implementation="static",
                disable_compile=True,
                **settings,
            )
        finally:
            del model.forward
    assert model.forward == forward
    assert got.tolist() == expected.tolist()


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.full
def test_the_real_model(smollm2):
    model, tokenizer = smollm2
    bank = random_bank(model, scale=30.0)
    inputs = tokenizer(["The harbour lay", "A letter came"], return_tensors="pt")
    counter = CompileCounter()
    with torch.no_grad():
        clean = model(**inputs, use_cache=False).logits
        with es.steer(model, bank, ["calm", "angry"], 0.1):
            expected = model(**inputs, use_cache=False).logits
        compiled = torch.compile(model, backend=counter, fullgraph=True)
        compiled(**inputs, use_cache=False)
        with es.steer(compiled, bank, ["calm", "angry"], 0.1, slots=1) as steering:
            got = compiled(**inputs, use_cache=False).logits
            graphs = counter.frame_count
            steering.set(0, es.cap("proud", 0.0))
            compiled(**inputs, use_cache=False)
            assert counter.frame_count == graphs
        torch.testing.assert_close(got, expected, rtol=5e-3, atol=5e-3)
        assert torch.equal(model(**inputs, use_cache=False).logits, clean)
