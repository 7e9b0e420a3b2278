"""Compiled steering among its neighbours: modes, gradients, adapters, checkpoints, the other verbs, export."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import emosteer as es
from emosteer import ops

from ...test_monitoring import bank_with_statistics
from ..conftest import padded, random_bank
from .conftest import PROGRAMS, steer

IDS, MASK = padded([[5, 6, 7, 8], [9, 10], [11, 12, 13], [14, 15, 16, 17]])


@torch.no_grad()
def logits(call, ids=IDS, mask=MASK):
    position = (mask.cumsum(1) - 1).clamp(min=0)
    return call(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).logits


@pytest.mark.full
@pytest.mark.parametrize(
    "how",
    [
        dict(mode="reduce-overhead", fullgraph=True),
        dict(mode="max-autotune-no-cudagraphs", fullgraph=True),
        dict(dynamic=True, fullgraph=True),
    ],
    ids=lambda how: how.get("mode", "dynamic"),
)
def test_modes_of_inductor(model, how):
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    bank = random_bank(model)
    call = torch.compile(model, **how)
    clean = logits(call)
    for positions in ("all", slice(1, None)):
        with steer(model, bank, PROGRAMS, layers="all", positions=positions) as steering:
            expected = logits(model)
            torch.testing.assert_close(logits(call), expected, rtol=1e-4, atol=1e-4)
            steering.set(1, es.add("joyful", 0.4))
            torch.testing.assert_close(logits(call), logits(model), rtol=1e-4, atol=1e-4)
            assert (logits(call)[1] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(logits(call), clean)


def test_any_batch_and_length_when_dynamic(model, bank):
    counter = CompileCounter()
    call = torch.compile(model, backend=counter, dynamic=True, fullgraph=True)
    for rows, columns in ((2, 5), (3, 7), (6, 4), (4, 9)):
        ids = torch.randint(5, 250, (rows, columns))
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        with steer(model, bank, PROGRAMS[: 2 - rows % 2], layers="all", positions=slice(1, 3)):
            torch.testing.assert_close(
                logits(call, ids, mask), logits(model, ids, mask), rtol=1e-4, atol=1e-4
            )
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=[pytest.mark.full, pytest.mark.slow])]
)
def test_gradients(model, bank, backend):
    """Of the weights, through every kind of program, as eager mode's."""

    def gradients(call):
        model.zero_grad()
        out = call(input_ids=IDS, attention_mask=MASK, use_cache=False).logits
        out[MASK.bool()].square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    call = torch.compile(model, backend=backend, fullgraph=True)
    with steer(model, bank, PROGRAMS, layers="all", positions=slice(1, None)):
        expected, got = gradients(model), gradients(call)
    unsteered = gradients(model)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-6)
    assert any((unsteered[name] - value).abs().max() > 1e-4 for name, value in expected.items())


@pytest.mark.full
def test_an_adapter(model, bank):
    peft = pytest.importorskip("peft", reason="adapters need peft: pip install peft")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False
        )
        adapted = peft.get_peft_model(model, config).eval()
    bank = random_bank(adapted)
    call = torch.compile(adapted, backend="eager")
    with steer(call, bank, PROGRAMS, layers="all"):
        got = logits(call)
        torch.testing.assert_close(got, logits(adapted), rtol=1e-4, atol=1e-4)
    assert (got - logits(adapted)).abs().max() > 0.1


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.full)], ids=["eager", "regional"]
)
def test_a_checkpoint_around_the_whole_block(model, bank, reentrant, compiled):
    """As transformers 4.5x does it: what runs again for the gradient is the patched block, after its pass."""
    from torch.utils.checkpoint import checkpoint

    kind = type(model.model.layers[0])

    class Checkpointed(kind):
        saving = False

        def __call__(self, hidden, **kwargs):
            call = super().__call__
            if not self.saving:
                return call(hidden, **kwargs)
            return checkpoint(lambda h: call(h, **kwargs), hidden, use_reentrant=reentrant)

    for block in model.model.layers:
        block.__class__ = Checkpointed
        if compiled:
            block.compile(backend="aot_eager")

    def gradients():
        model.zero_grad()
        losses = [
            model(input_ids=ids, attention_mask=MASK, use_cache=False).logits[MASK.bool()].square().mean()
            for ids in (IDS, IDS + 20)  # two passes before their gradients
        ]
        sum(losses).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    with steer(model, bank, PROGRAMS, layers="all", positions=slice(1, None)):
        expected = gradients()
        Checkpointed.saving = True
        if compiled:
            with pytest.raises(RuntimeError, match="leave activation checkpointing off while steering"):
                gradients()
            return
        got = gradients()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("how", [pytest.param("whole", marks=pytest.mark.full), "regional"])
def test_monitor_reads_a_compiled_model(model, how):
    bank = bank_with_statistics(model)
    ids, mask = IDS[:2], MASK[:2]
    settings = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)

    def scores():
        with steer(model, bank, "calm", 0.3, layers=[0]), es.monitor(model, bank, layers=[0, 1]) as monitor:
            model.generate(input_ids=ids, attention_mask=mask, **settings)
        turn = monitor.turns[0]
        return torch.cat([part[layer].max for part in (turn.prompt, turn.generated) for layer in (0, 1)])

    expected = scores()
    if how == "whole":
        model.forward = torch.compile(model.forward, backend="aot_eager")
    else:
        for block in model.model.layers:
            block.compile(backend="aot_eager")
    torch.testing.assert_close(scores(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.full
def test_regulate_holds_its_bound_in_compiled_code(model):
    bank = bank_with_statistics(model)
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    with es.regulate(model, bank, cap={"angry": 0.1}, floor={"calm": 0.3}, layers=[0, 1]):
        got = logits(call)
        torch.testing.assert_close(got, logits(model), rtol=1e-4, atol=1e-4)
    assert (got - logits(model)).abs().max() > 0.01


@pytest.mark.full
def test_read_and_extract_from_a_compiled_model(model, tiny_llama):
    bank, tokenizer = bank_with_statistics(model), tiny_llama[1]
    expected = es.read(model, tokenizer, "hello there", bank, layers=[1]).scores
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    for block in model.model.layers:
        block.compile(backend="aot_eager")
    got = es.read(call, tokenizer, "hello there", bank, layers=[1]).scores
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected))


@pytest.mark.full
def test_many_slots_take_an_operator_and_say_so(model, bank):
    names = bank.names
    many = sum((es.cap(name, 0.05) for name in names[1:]), es.add(names[0], 0.2))
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    with steer(model, bank, [many, None], layers="all", slots=12) as steering:
        assert "12 slots a row are more than the 8" in steering.report()
        torch.testing.assert_close(logits(call), logits(model), rtol=1e-4, atol=1e-4)
    with steer(model, bank, "calm", 0.1) as steering:
        assert "operator" not in steering.report()


def test_operators_inside_other_peoples_compiled_code():
    v = torch.nn.functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    table = ops.SteerTable.empty(2)
    table.direction[:, 0], table.strength[:, 0], table.preserve_norm[:] = 1, 0.5, 1

    def theirs(x):
        return torch.tanh(ops.steer(x * 2, v, table, scale=3.0)).sum(-1)

    x = torch.randn(4, 16)
    torch.testing.assert_close(torch.compile(theirs, fullgraph=True, backend="aot_eager")(x), theirs(x))
