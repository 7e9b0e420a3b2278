"""Norms steer only in passes that want them: in between, and in compiled code, they are as they were."""

import gc
import threading
import weakref

import pytest
import torch

import emosteer as es
from emosteer.models.forwards import NormForward

from ..patience import PATIENCE

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def norms(model):
    return [m for m in model.model.modules() if "RMSNorm" in type(m).__name__]


def replaced(model):
    return sum(isinstance(m.__dict__.get("forward"), NormForward) for m in norms(model))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture
def seen(model):
    """How many norms were replaced while the passes of the model ran."""
    found = []
    hook = model.lm_head.register_forward_pre_hook(lambda *_: found.append(replaced(model)))
    inside = model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: found.append(replaced(model)))
    yield found
    hook.remove()
    inside.remove()


def test_they_are_replaced_while_a_pass_runs(model, bank, seen):
    with es.steer(model, bank, "calm", 0.3, layers="all"):
        assert replaced(model) == 0
        seen.clear()  # of the passes that proved the fusion
        logits(model)
        assert seen == [len(norms(model)), 0]  # the head runs behind the stack
        assert replaced(model) == 0
    with es.steer(model, bank, "calm", 0.3, layers="all", fused=False):
        logits(model)
    assert seen[2:] == [0, 0]


def test_a_pass_that_fails_leaves_none(model, bank):
    def fail(*_):
        raise KeyError("in the middle")

    with es.steer(model, bank, "calm", 0.3, layers="all"):
        expected = logits(model)
        hook = model.model.layers[1].mlp.register_forward_pre_hook(fail)
        with pytest.raises(KeyError, match="in the middle"):
            logits(model)
        assert replaced(model) == 0
        hook.remove()
        assert torch.equal(logits(model), expected)


def test_a_norm_that_is_replaced_inside_is_seen(model, bank, seen):
    """Somebody's own forward, put there amid the steering: it sees the steered stream and is kept."""
    norm = model.model.layers[2].input_layernorm
    original, streams = norm.forward, []

    def mine(x):
        streams.append(x.clone())
        return original(x)

    outcomes = []
    for fused in (False, True):
        with es.steer(model, bank, "calm", 0.3, layers="all", fused=fused):
            norm.forward = mine
            outcomes.append(logits(model))
            assert norm.__dict__["forward"] is mine
            del norm.forward
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(streams[1], streams[0], rtol=1e-4, atol=1e-5)
    assert seen[-2] == 0


def test_a_norm_that_is_replaced_in_the_middle_of_a_pass_is_kept(model, bank):
    norm = model.model.layers[2].post_attention_layernorm

    def wrap(*_):
        before = norm.forward
        norm.forward = lambda x: before(x)

    with es.steer(model, bank, "calm", 0.3, layers="all"):
        expected = logits(model)
        hook = model.model.layers[1].register_forward_pre_hook(wrap)
        assert torch.equal(logits(model), expected)
        hook.remove()
        theirs = norm.__dict__["forward"]
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    assert norm.__dict__["forward"] is theirs
    logits(model)  # theirs calls through to the norm
    del norm.forward


def test_passes_of_two_threads_overlap(model, bank):
    """The first pass to end does not take the norms from the other, which is held in its middle."""
    middle, go_on = threading.Event(), threading.Event()
    held = threading.local()

    def hold(*_):
        if getattr(held, "here", False):
            middle.set()
            assert go_on.wait(PATIENCE)

    found = {}
    with es.steer(model, bank, ["calm"], 0.3, layers="all"):
        expected = logits(model)
        hook = model.model.layers[1].mlp.register_forward_pre_hook(hold)

        def slow():
            held.here = True
            found["slow"] = logits(model)

        thread = threading.Thread(target=slow)
        thread.start()
        assert middle.wait(PATIENCE)
        found["quick"] = logits(model)
        inside = replaced(model)
        go_on.set()
        thread.join()
        hook.remove()
        assert inside == len(norms(model))
        assert replaced(model) == 0
    assert torch.equal(found["quick"], expected)
    assert torch.equal(found["slow"], expected)


def test_a_weight_that_is_replaced_is_let_go(model, bank):
    norm = model.model.layers[2].post_attention_layernorm
    with es.steer(model, bank, "calm", 0.3, layers="all"):
        logits(model)
    old = weakref.ref(norm.weight)
    norm.weight = torch.nn.Parameter(norm.weight.detach().clone())
    gc.collect()
    assert old() is None


def test_compiled_code_checks_nothing_of_the_norms(model, bank):
    """As many guards as where blocks steer at their outputs, and one graph whatever eager passes ran between."""
    from torch._dynamo.utils import clear_compilation_metrics, get_compilation_metrics

    def guards(**options):
        torch._dynamo.reset()
        clear_compilation_metrics()  # of which only the last 64 are kept
        with es.steer(model, bank, "calm", 0.3, layers="all", slots=1, **options), torch.no_grad():
            logits(model)
            compiled = torch.compile(model, backend="eager", dynamic=False, fullgraph=True)
            compiled(input_ids=IDS)
            logits(model)
            compiled(input_ids=IDS)
        (only,) = get_compilation_metrics()
        return only.guard_count

    assert guards() == guards(fused=False)
