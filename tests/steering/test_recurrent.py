"""Models whose blocks keep a state, or a state and keys by turns: what is steered and read is as elsewhere."""

import pytest
import torch

import emosteer as es

from .conftest import padded, random_bank, streams
from .tiny import RECURRENT, tiny

POSITIONS = ["prompt", "generated", slice(2, 9), slice(-1, None), slice(0, None, 2)]
NEW = 5
# transformers itself: RWKV mixes the rows of a batch in decoding.
ALONE = ("rwkv",)
# And these refuse to be prefilled in chunks, or fail.
WHOLE = ("mamba", "mamba2", "falcon_mamba", "rwkv", "minimax", "recurrent_gemma")
LAYER = 1


# Others stand for these in the quick tests.
LIKE_OTHERS = ("falcon_mamba", "granitemoehybrid", "nemotron_h", "olmo_hybrid")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.full) if name in LIKE_OTHERS else name for name in RECURRENT
    ],
)
def case(request):
    """`(model, bank, ids, mask, whole)`: rows padded on the left, and the texts that are generated from them."""
    model = tiny(request.param)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 90, (n,), generator=generator).tolist() for n in (7, 3, 11)]
    ids, mask = padded(rows[:1] if request.param in ALONE else rows)
    more = torch.randint(5, 90, (len(ids), NEW), generator=generator)
    return model, random_bank(model), ids, mask, torch.cat([ids, more], 1)


def steering(model, bank, positions):
    """Block 1 moved far, at its output: what it reads of earlier tokens is block 0, which is not steered."""
    program = es.add("calm", 40.0, preserve_norm=False)
    return es.steer(model, bank, program, layers=[LAYER], positions=positions, fused=False)


def run(model, ids, mask, whole, **how):
    """The stream after the block over a text, token by token, as `generate` runs it."""

    def only(row, sent):
        return [int(whole[row, len(sent)])]

    with streams(model) as seen:
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            prefix_allowed_tokens_fn=only,
            **how,
        )
    return torch.cat([layers[LAYER] for layers in seen], 1)


def chosen(mask, positions):
    """Bool `[B, T]`: the tokens at those positions, by hand."""
    token = torch.cat([mask, torch.ones(len(mask), NEW - 1, dtype=mask.dtype)], 1).bool()
    position, length = token.cumsum(1) - 1, mask.sum(1, keepdim=True)
    if positions == "prompt":
        return token & (position < length)
    if positions == "generated":
        return position >= length
    if positions == slice(-1, None):
        return position >= length - 1
    kept = torch.zeros(len(mask), 64, dtype=torch.bool)
    kept[:, positions] = True
    return token & kept.gather(1, position.clamp(min=0))


def test_the_tokens_that_are_steered(case):
    model, bank, ids, mask, whole = case
    clean = run(model, ids, mask, whole)
    for positions in POSITIONS:
        with steering(model, bank, positions):
            moved = (run(model, ids, mask, whole) - clean).norm(dim=-1) > 1.0
        assert torch.equal(moved, chosen(mask, positions)), positions


def test_prefilled_in_chunks(case):
    model, bank, ids, mask, whole = case
    if model.config.model_type in WHOLE:
        pytest.skip("transformers does not prefill this model in chunks")
    clean = run(model, ids, mask, whole, prefill_chunk_size=4)
    for positions in ("generated", slice(2, 9)):
        with steering(model, bank, positions):
            moved = (run(model, ids, mask, whole, prefill_chunk_size=4) - clean).norm(dim=-1) > 1.0
        assert torch.equal(moved, chosen(mask, positions)), positions


def _cache(output):
    return {
        name: output[name]
        for name in ("past_key_values", "cache_params", "state")
        if output.get(name) is not None
    }


def by_hand(model, whole, prompt):
    """A decode loop of one's own, each pass continuing the last one's cache."""
    cache, step = {}, whole[:, :prompt]
    with streams(model) as seen, torch.no_grad():
        for column in range(prompt, whole.shape[1]):
            cache = _cache(model(input_ids=step, use_cache=True, **cache))
            step = whole[:, column : column + 1]
    return torch.cat([layers[LAYER] for layers in seen], 1), cache


def test_a_decode_loop_of_ones_own(case):
    model, bank, ids, _, whole = case
    if model.config.model_type == "recurrent_gemma":
        pytest.skip("it keeps its states in its modules and hands on no cache")
    prompt, whole = ids.shape[1], whole.where(whole > 0, torch.tensor(7))
    every = torch.ones(len(ids), prompt, dtype=torch.long)
    clean, _ = by_hand(model, whole, prompt)
    for positions in POSITIONS:
        for _ in range(2):  # the second text's cache is another one
            with steering(model, bank, positions):
                moved = (by_hand(model, whole, prompt)[0] - clean).norm(dim=-1) > 1.0
            assert torch.equal(moved, chosen(every, positions)), positions


def test_what_a_monitor_reads(case):
    """Prompt and generated tokens of every row, counted once, and the means of one pass over the whole text."""
    model, plain, ids, mask, whole = case
    zeros, ones = ({layer: f(len(plain)) for layer in plain.layers} for f in (torch.zeros, torch.ones))
    bank = es.Bank(
        plain.names, plain.directions, scale=plain.scale, projection_mean=zeros, projection_std=ones
    )
    with es.monitor(model, bank, layers=[LAYER]) as monitor:
        seen = run(model, ids, mask, whole)
    (turn,) = monitor.turns
    prompt, generated = chosen(mask, "prompt"), chosen(mask, "generated")
    for running, kept in ((turn.prompt[LAYER], prompt), (turn.generated[LAYER], generated)):
        assert running.count.tolist() == kept.sum(1).tolist()
        z = seen @ bank.directions[LAYER].T
        mean = (z * kept[..., None]).sum(1) / kept.sum(1, keepdim=True)
        torch.testing.assert_close(running.mean, mean, rtol=1e-3, atol=1e-3)


def test_tokens_that_nobody_counted():
    """What went into a recurrent cache before the steering is not known to it, and said to be so."""
    model = tiny("mamba")
    bank = random_bank(model)
    whole = torch.arange(5, 14)[None]
    _, cache = by_hand(model, whole, 4)
    step = whole[:, -1:]
    with torch.no_grad():
        for positions in ("generated", slice(2, 9)):
            with steering(model, bank, positions), pytest.raises(ValueError, match="does not say how many"):
                model(input_ids=step, use_cache=True, **cache)
        with steering(model, bank, slice(2, 9)):  # a mask of the whole text says it
            model(input_ids=step, attention_mask=torch.ones(1, 9), use_cache=True, **cache)
        with steering(model, bank, "all"):
            model(input_ids=step, use_cache=True, **cache)


@pytest.mark.full
def test_a_compiled_step():
    """Compiled code cannot count what goes into such a cache: it steers everything, or says so."""
    model = tiny("mamba")
    bank = random_bank(model)
    ids = torch.arange(5, 10)[None]

    @torch.no_grad()
    def two_passes(run):
        cache = _cache(run(input_ids=ids[:, :4], use_cache=True))
        return run(input_ids=ids[:, 4:], use_cache=True, **cache).logits

    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    try:
        with steering(model, bank, "all"):
            torch.testing.assert_close(two_passes(compiled), two_passes(model), rtol=1e-4, atol=1e-4)
        with steering(model, bank, "generated"), pytest.raises(RuntimeError, match="does not say how many"):
            two_passes(compiled)
    finally:
        torch._dynamo.reset()
