"""What steering adds to Inductor's output: nothing that grows with the layers."""

import pytest
import torch
from transformers import StaticCache

import emosteer as es

from ..conftest import random_bank
from .cuda_code import cuda_code, launches
from .test_neighbours import logits


def calls(model, program=None, slots=1):
    """Calls in Inductor's output for one pass, which gives what eager code gives."""
    from contextlib import nullcontext

    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    steering = nullcontext()
    if program is not None:
        steering = es.steer(model, random_bank(model), program, layers="all", slots=slots)
    with steering:
        got, code = run_and_get_code(logits, torch.compile(model, dynamic=False, fullgraph=True))
        torch.testing.assert_close(got, logits(model), rtol=1e-4, atol=1e-4)
    body = code[-1][code[-1].index("def call(") :]
    starts = ("cpp_fused", "extern_kernels.", "torch.ops.", "aten.")
    return sum(line.strip().startswith(starts) for line in body.splitlines())


def cut(model, depth):
    model.model.layers = model.model.layers[:depth]
    model.config.num_hidden_layers = depth
    return model


def test_no_kernel_is_added_to_a_layer(tiny_llama):
    """What a pass adds is less than one call a layer would be."""
    model = tiny_llama[0]
    unsteered, steered = calls(model), calls(model, es.add("calm", 0.3))
    depth = len(model.model.layers)
    assert unsteered > 5 * depth
    assert steered - unsteered < depth, (unsteered, steered)


@pytest.mark.full
@pytest.mark.slow
def test_no_kernel_is_added_to_a_layer_of_several_slots(tiny_llama):
    """The norm kept, with bounds: two layers more add what they add unsteered."""
    model, program = tiny_llama[0], es.add("calm", 0.3) + es.cap("angry", 0.0)
    added = [calls(cut(model, depth), program, slots=2) - calls(cut(model, depth)) for depth in (3, 1)]
    assert added[0] - added[1] < 2, added  # one a layer would be two


@pytest.mark.full
@pytest.mark.skipif(torch.cuda.is_available(), reason="lowers for a GPU that is not there")
@pytest.mark.parametrize(("slots", "batch", "tokens"), [(1, 4, 16), (4, 16, 1)], ids=["prefill", "decode"])
def test_no_launch_is_added_to_a_layer_on_a_gpu(tiny_llama, slots, batch, tokens):
    """Lowered for CUDA, a prefill and a step behind a static cache: a pass makes a few launches more, a layer none."""
    model = tiny_llama[0]
    model.config._attn_implementation = "eager"
    ids = torch.randint(5, 250, (batch, tokens))
    program = es.add("calm", 0.3) if slots == 1 else es.add("calm", 0.3) + es.cap("angry", 0.0)

    def count():
        given = {"input_ids": ids, "use_cache": False}
        if tokens == 1:
            cache = StaticCache(config=model.config, max_cache_len=64)
            with torch.no_grad():
                model(input_ids=ids.expand(-1, 8), past_key_values=cache, use_cache=True)
            at = torch.full((batch, 1), 8)
            given = {"input_ids": ids, "position_ids": at, "past_key_values": cache, "use_cache": True}
        return launches(cuda_code(model, lambda call: call(**given).logits))

    added = {}
    for depth in (2, 1):
        cut(model, depth)
        unsteered = count()
        assert unsteered > 10 * depth
        with es.steer(model, random_bank(model), program, layers="all", slots=slots):
            added[depth] = count() - unsteered
    assert added[2] - added[1] < 1, added
    assert max(added.values()) <= 6, added
