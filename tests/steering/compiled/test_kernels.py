"""What steering adds to Inductor's output: nothing that grows with the layers."""

import pytest
import torch

import emosteer as es

from ..conftest import random_bank
from .test_neighbours import logits


def calls(model, program=None, slots=1):
    """Calls in Inductor's output for one pass."""
    from contextlib import nullcontext

    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    steering = nullcontext()
    if program is not None:
        steering = es.steer(model, random_bank(model), program, layers="all", slots=slots)
    with steering:
        _, code = run_and_get_code(logits, torch.compile(model, dynamic=False, fullgraph=True))
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
def test_no_kernel_is_added_to_a_layer_of_several_slots(tiny_llama):
    """Four slots, the norm kept, with bounds: two layers more add what they add unsteered."""
    model, program = tiny_llama[0], es.add("calm", 0.3) + es.cap("angry", 0.0)
    deep = calls(model, program, slots=4) - calls(model)
    shallow = calls(cut(model, 2), program, slots=4) - calls(cut(model, 2))
    assert deep - shallow < 2, (shallow, deep)  # one call a layer would be two
