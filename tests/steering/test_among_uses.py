"""What users of a steered model do beside running it: train, change, interrupt, save, look at its states."""

import asyncio
import copy
import io
import warnings

import pytest
import torch
import transformers
from torch.autograd import forward_ad

import emosteer as es

from .conftest import padded, random_bank
from .test_restore import leftovers

PROGRAMS = [es.add("calm", 0.3), es.cap("angry", 0.0)]
IDS, MASK = padded([[5, 6, 7, 8], [9, 10]])
GREEDY = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False, pad_token_id=0)


@torch.no_grad()
def logits(model, **more):
    return model(**{"input_ids": IDS, "attention_mask": MASK, **more}).logits


def test_several_sequences_each_with_a_streamer_of_its_own(model, bank):
    """Sampled sequences of one program come out as those of a batch that repeats its prompt."""
    row = {"input_ids": IDS[:1], "attention_mask": MASK[:1]}
    how = {**GREEDY, "do_sample": True}
    with es.steer(model, bank, "calm", 0.4, layers="all", positions="generated"):
        torch.manual_seed(0)
        several = model.generate(**row, num_return_sequences=4, **how)
        torch.manual_seed(0)
        repeated = model.generate(**{k: v.expand(4, -1) for k, v in row.items()}, **how)
    assert several.tolist() == repeated.tolist()


def test_a_cache_that_goes_on_under_another_program(model, bank):
    """Keys stay as they were computed: tokens before are steered by the first program, those after by the second."""
    from transformers import DynamicCache

    whole = torch.arange(5, 15)[None]
    head, tail = whole[:, :6], whole[:, 6:]
    for fused in (True, False):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            with es.steer(model, bank, "calm", 0.4, layers="all", fused=fused):
                model(input_ids=head, past_key_values=cache, use_cache=True)
            with es.steer(model, bank, "angry", 0.4, layers="all", fused=fused):
                got = model(input_ids=tail, past_key_values=cache, use_cache=True).logits
            # Both programs at once, each at its own positions, in one pass without a cache.
            with (
                es.steer(model, bank, "calm", 0.4, layers="all", positions=slice(0, 6)),
                es.steer(model, bank, "angry", 0.4, layers="all", positions=slice(6, None)),
            ):
                expected = model(input_ids=whole, use_cache=False).logits[:, 6:]
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_a_cache_over_turns_of_generate(model, bank):
    """The second turn's prompt is the whole text so far; "generated" begins after it."""
    from transformers import DynamicCache

    ids = torch.arange(5, 11)[None]
    with es.steer(model, bank, "calm", 0.4, layers="all", positions="generated"):
        cache = DynamicCache(config=model.config)
        first = model.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **GREEDY)
        longer = torch.cat([first, torch.tensor([[20, 21, 22]])], 1)
        second = model.generate(
            longer, attention_mask=torch.ones_like(longer), past_key_values=cache, **GREEDY
        )
    # The first turn's tokens were steered when they were generated: the last one had not gone through the model.
    positions = torch.zeros(40, dtype=torch.bool)
    positions[6:10] = True
    positions[longer.shape[1] :] = True
    with es.steer(model, bank, "calm", 0.4, layers="all", positions=positions):
        expected = model.generate(longer, attention_mask=torch.ones_like(longer), **GREEDY)
    assert second.tolist() == expected.tolist()


def test_dropout_draws_the_same_numbers(tiny_llama):
    """In training mode, with dropout: steering draws nothing itself, and attaching moves no generator."""
    model = tiny_llama[0]
    model.config.attention_dropout = 0.3
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    bank = random_bank(model)
    model.train()

    def run(fused):
        torch.manual_seed(0)
        with es.steer(model, bank, PROGRAMS, layers="all", fused=fused):
            return logits(model)

    torch.testing.assert_close(run(True), run(False), rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    plain = logits(model)
    torch.manual_seed(0)
    with es.steer(model, bank, [None] * 2, layers="all", fused=False):
        assert torch.equal(logits(model), plain)
    assert model.training


def test_gradients_add_up_over_two_steerings(model, bank):
    def gradient(steerings):
        model.zero_grad()
        for name in steerings:
            with es.steer(model, bank, name, 0.3, layers="all"):
                loss = model(input_ids=IDS, attention_mask=MASK).logits.square().mean()
            loss.backward()  # after its `with`: the graph keeps what it was steered by
        return model.model.layers[0].mlp.up_proj.weight.grad.clone()

    calm, angry = gradient(["calm"]), gradient(["angry"])
    assert not torch.allclose(calm, angry)
    torch.testing.assert_close(gradient(["calm", "angry"]), calm + angry, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_program_changed_before_backward(model, bank, checkpointed):
    """The gradient is that of the pass, whatever the table says by then."""
    if checkpointed:
        model.train()
        model.gradient_checkpointing_enable()

    def gradient(change):
        model.zero_grad()
        with es.steer(model, bank, PROGRAMS, layers="all") as steering:
            loss = model(input_ids=IDS, attention_mask=MASK).logits.square().mean()
            if change:
                steering.set(0, es.add("proud", -0.8))
            loss.backward()
        return model.model.layers[0].mlp.up_proj.weight.grad.clone()

    torch.testing.assert_close(gradient(True), gradient(False))


def test_an_optimiser_steps_while_steered(model, bank):
    """The norms' weights are read anew in every pass."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    with es.steer(model, bank, PROGRAMS, layers="all"):
        before = logits(model)
        model(input_ids=IDS, attention_mask=MASK).logits.square().mean().backward()
        optimiser.step()
        after = logits(model)
    assert not torch.allclose(before, after)
    with es.steer(model, bank, PROGRAMS, layers="all", fused=False):
        torch.testing.assert_close(logits(model), after, rtol=1e-4, atol=1e-4)


def test_saving_a_bank_and_the_weights_inside(model, bank, tmp_path):
    file = io.BytesIO()
    with es.steer(model, bank, PROGRAMS, layers="all"):
        expected = logits(model)
        torch.save(bank, file)
        bank.save(tmp_path / "bank.safetensors")
        torch.save(model.state_dict(), tmp_path / "weights.pt")
    file.seek(0)
    # Its own bytes, made above.
    for again in (torch.load(file, weights_only=False), es.Bank.load(tmp_path / "bank.safetensors")):
        with es.steer(model, again, PROGRAMS, layers="all"):
            assert torch.equal(logits(model), expected)
    assert torch.load(tmp_path / "weights.pt", weights_only=True).keys() == model.state_dict().keys()


@pytest.mark.parametrize("when", ["before", "inside"])
def test_half_precision_before_and_inside(model, bank, when):
    if when == "before":
        model.half()
    with es.steer(model, bank, PROGRAMS, layers="all") as steering:
        if when == "inside":
            model.half()
        got = logits(model)
        assert "steered inside" in steering.report()
    assert got.dtype == torch.float16
    with es.steer(model, bank, PROGRAMS, layers="all", fused=False):
        torch.testing.assert_close(got, logits(model), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupted_inside_a_pass(model, bank, error):
    """The next pass is as if nothing had been; leaving restores."""
    before, clean = leftovers(model), logits(model)
    with es.steer(model, bank, PROGRAMS, layers="all", positions="generated") as steering:
        expected = model.generate(input_ids=IDS, attention_mask=MASK, **GREEDY)

        def stop(*_):
            raise error

        for module in (model.model.layers[1].mlp, model.model.layers[2].self_attn):
            handle = module.register_forward_hook(stop)
            with pytest.raises(error):
                model.generate(input_ids=IDS, attention_mask=MASK, **GREEDY)
            handle.remove()
            assert model.generate(input_ids=IDS, attention_mask=MASK, **GREEDY).tolist() == expected.tolist()
        steering.set(0, "angry", 0.2)
    with pytest.raises(error), es.steer(model, bank, PROGRAMS, layers="all"):
        raise error
    assert leftovers(model) == before
    assert torch.equal(logits(model), clean)


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", slice(-1, None), slice(0, 3)], ids=str)
def test_a_row_of_padding_alone(model, bank, positions):
    """A batch filled up with an empty row: the others are as without it."""
    ids, mask = padded([[5, 6, 7, 8], [9, 10], []])
    with es.steer(model, bank, [*PROGRAMS, "proud"], 0.3, layers="all", positions=positions):
        got = model.generate(input_ids=ids, attention_mask=mask, **GREEDY)
    with es.steer(model, bank, PROGRAMS, layers="all", positions=positions):
        expected = model.generate(input_ids=IDS, attention_mask=MASK, **GREEDY)
    assert got[:2].tolist() == expected.tolist()


def test_what_hidden_states_show_at_the_last_block(model, bank):
    """transformers hands out the last state after the final norm; the others as steered."""
    with es.steer(model, bank, PROGRAMS, layers="all"):
        with torch.no_grad():
            out = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True)
            kept = model.model(input_ids=IDS, attention_mask=MASK).last_hidden_state
        torch.testing.assert_close(out.hidden_states[-1], kept)
        torch.testing.assert_close(model.lm_head(kept), out.logits)


def test_a_batch_that_shrinks_and_grows(model, bank):
    """One program serves batches of any size, one after another, and rows assigned to each."""
    with es.steer(model, bank, [es.add("calm", 0.4), es.add("angry", 0.4)], layers="all") as steering:
        alone = []
        for row in (0, 1):
            with steering.batch([row]):
                alone.append(logits(model, input_ids=IDS[:1], attention_mask=MASK[:1]))
        for rows in ([1], [0, 1, 1], [1, 0]):
            many = {
                "input_ids": IDS[:1].expand(len(rows), -1),
                "attention_mask": MASK[:1].expand(len(rows), -1),
            }
            with steering.batch(rows):
                got = logits(model, **many)
            for k, row in enumerate(rows):
                torch.testing.assert_close(got[k], alone[row][0], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    transformers.__version__ < "5", reason="transformers 4's own masks cannot be traced, steered or not"
)
def test_traced_by_jit(model, bank):
    """The kernels are not seen by a tracer; what it records is the formula."""

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids):
            return self.model(input_ids=ids, use_cache=False).logits

    other = IDS.flip(1) + 3
    with es.steer(model, bank, PROGRAMS, layers="all"), torch.no_grad():
        expected = logits(model, input_ids=other, attention_mask=None, use_cache=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's own: shapes become constants
            traced = torch.jit.trace(Logits(), (IDS,), check_trace=False)
        torch.testing.assert_close(traced(other), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gradients", [torch.enable_grad, torch.no_grad])
def test_forward_mode_derivatives(model, bank, gradients):
    """Against finite differences."""
    model.set_attn_implementation("eager")  # others have no such derivatives
    embeds = model.get_input_embeddings()(torch.arange(5, 13).view(2, 4)).detach()
    towards = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(0))

    def run(x):
        return model(inputs_embeds=x, use_cache=False).logits

    with es.steer(model, bank, PROGRAMS, layers="all"):
        with gradients(), forward_ad.dual_level():
            got = forward_ad.unpack_dual(run(forward_ad.make_dual(embeds, towards))).tangent
        with torch.no_grad():
            step = 1e-3 * towards
            expected = (run(embeds + step) - run(embeds - step)) / 2e-3
    assert (got - expected).norm() < 0.02 * expected.norm()


def test_a_shallow_copy_says_what_it_is(model, bank):
    """It shares the modules, so it is steered with them; afterwards it is told from a model."""
    with es.steer(model, bank, PROGRAMS, layers="all"):
        shallow = copy.copy(model)
        assert torch.equal(logits(shallow), logits(model))
    with pytest.raises(RuntimeError, match=r"shallow copy of the model .* copy.deepcopy"):
        logits(shallow)
    assert torch.equal(logits(copy.copy(model)), logits(model))


def test_a_pipeline(tiny_llama, bank):
    """transformers' own pipeline calls the model's `generate`."""
    from transformers import pipeline

    model, tok = tiny_llama
    pipe = pipeline("text-generation", model=model, tokenizer=tok)
    how = dict(max_new_tokens=4, do_sample=False, return_tensors=True)
    clean = pipe("hello", **how)
    with es.steer(model, bank, "calm", 0.5, layers="all", positions=slice(-1, None)):
        got = pipe("hello", **how)
        inputs = tok("hello", return_tensors="pt")
        expected = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert got[0]["generated_token_ids"] == expected[0].tolist()
    assert got != clean
    assert pipe("hello", **how) == clean


def test_two_tasks_of_one_thread(model, bank):
    """Between two tasks that wait inside `batch`, neither's passes are its own: the first to leave says so."""
    with es.steer(model, bank, ["calm", "angry"], 0.4, layers="all") as steering:

        async def serve(row, waits):
            with steering.batch([row]):
                await asyncio.sleep(waits)
                return logits(model, input_ids=IDS[:1], attention_mask=MASK[:1])

        async def both():
            return await asyncio.gather(serve(0, 0.01), serve(1, 0.03), return_exceptions=True)

        first, _ = asyncio.run(both())
        assert isinstance(first, RuntimeError)
        assert "Give each a thread of its own" in str(first)

        async def one_by_one():
            return [await serve(row, 0) for row in (0, 1)]

        got = asyncio.run(one_by_one())
    for name, here in zip(("calm", "angry"), got):
        with es.steer(model, bank, name, 0.4, layers="all"):
            alone = logits(model, input_ids=IDS[:1], attention_mask=MASK[:1])
        torch.testing.assert_close(here, alone, rtol=1e-4, atol=1e-4)
