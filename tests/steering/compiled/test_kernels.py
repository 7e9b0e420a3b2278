"""What steering adds to Inductor's output: nothing that grows with the layers."""

import pytest
import torch

import emosteer as es

from ..conftest import random_bank
from .test_neighbours import logits


@pytest.mark.parametrize("slots", [1, pytest.param(4, marks=pytest.mark.full)])
def test_no_kernel_is_added_to_a_layer(tiny_llama, slots):
    """Calls in Inductor's output: what a pass adds does not grow with the layers."""
    from torch._inductor.utils import run_and_get_code

    model = tiny_llama[0]
    bank = random_bank(model)

    def calls():
        torch._dynamo.reset()
        _, code = run_and_get_code(logits, torch.compile(model, dynamic=False, fullgraph=True))
        body = code[-1][code[-1].index("def call(") :]
        lines = [line.strip() for line in body.splitlines()]
        return sum(line.startswith(("cpp_fused", "extern_kernels.", "torch.ops.", "aten.")) for line in lines)

    unsteered = calls()
    program = es.add("calm", 0.3) if slots == 1 else es.add("calm", 0.3) + es.cap("angry", 0.0)
    with es.steer(model, bank, program, layers="all", slots=slots):
        steered = calls()
    depth = len(model.model.layers)
    assert unsteered > 5 * depth
    assert steered - unsteered < depth, (unsteered, steered)
