"""Every way of generating steers the same tokens, counted alike with and without a cache."""

import contextlib

import pytest
import torch
import transformers
from packaging.version import Version

import emosteer as es

from ..patience import PATIENCE
from .conftest import padded, streams

POSITIONS = ["all", "prompt", "generated", slice(2, 9), slice(-1, None), slice(0, None, 2)]
NEW = 6


@pytest.fixture
def batch(prompts):
    return padded(prompts)


@pytest.fixture
def programs():
    return [es.add("calm", 0.3), None, es.cap("angry", 0.0), es.add("joyful", -0.2)]


def generate(model, batch, **kwargs):
    ids, mask = batch
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return model.generate(input_ids=ids, attention_mask=mask, **{**settings, **kwargs})


def ids_of(spec):
    return str(spec)


@pytest.mark.parametrize("positions", POSITIONS, ids=ids_of)
@pytest.mark.parametrize(
    "how",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 4},
        {"num_return_sequences": 1, "num_beams": 1},
    ],
    ids=["no cache", "static cache", "chunked prefill", "plain"],
)
def test_the_same_text(model, bank, batch, programs, positions, how):
    if "prefill_chunk_size" in how and transformers.__version__ < "5":
        # Older versions count padding among a chunk's positions, which changes the text of any model.
        ids = torch.randint(5, 250, (len(programs), 11), generator=torch.Generator().manual_seed(1))
        batch = ids, torch.ones_like(ids)
    with es.steer(model, bank, programs, layers="all", positions=positions):
        expected = generate(model, batch)
        assert generate(model, batch, **how).tolist() == expected.tolist()


@pytest.mark.parametrize("positions", POSITIONS, ids=ids_of)
def test_the_tokens_that_are_steered(model, bank, prompts, positions):
    """What is acted on, seen at the block's output: a token is moved exactly if its position is chosen."""
    ids, mask = padded(prompts)
    text = generate(model, (ids, mask))
    whole = torch.cat([mask, torch.ones(len(ids), NEW, dtype=mask.dtype)], 1)[:, :-1].bool()
    position = whole.cumsum(1) - 1
    length = mask.sum(1, keepdim=True)
    if positions == "all":
        expected = whole
    elif positions == "prompt":
        expected = whole & (position < length)
    elif positions == "generated":
        expected = position >= length
    elif positions == slice(-1, None):
        expected = position >= length - 1
    else:
        chosen = torch.zeros(len(ids), 64, dtype=torch.bool)
        chosen[:, positions] = True
        expected = whole & chosen.gather(1, position.clamp(min=0))
    steering = es.steer(
        model, bank, es.add("calm", 40.0, preserve_norm=False), layers=[1], positions=positions, fused=False
    )
    # The whole text is fed back token by token: generation itself would leave this text.
    with torch.no_grad(), streams(model) as clean:
        generate(model, (ids, mask), prefix_allowed_tokens_fn=follow(text))
    clean = torch.cat([layers[1] for layers in clean], 1)
    with steering, streams(model) as seen:
        generate(model, (ids, mask), prefix_allowed_tokens_fn=follow(text))
    steered = torch.cat([layers[1] for layers in seen], 1)
    # Attention in block 1 reads block 0, which is not steered: rows differ only where block 1 was.
    moved = (steered - clean).norm(dim=-1) > 1.0
    assert torch.equal(moved, expected)


def follow(text):
    """Allow only the next token of a given text."""

    def allowed(row, sent):
        return [int(text[row, len(sent)])]

    return allowed


def test_a_mask_over_positions(model, bank, prompts):
    ids, mask = padded(prompts)
    rows = torch.zeros(4, 12, dtype=torch.bool)
    rows[0, 2:5] = rows[2, 0] = rows[3, 4:7] = True
    with es.steer(model, bank, ["calm"] * 4, 0.4, layers="all", positions=rows):
        together = generate(model, (ids, mask))
        assert generate(model, (ids, mask), use_cache=False).tolist() == together.tolist()
    for k, prompt in enumerate(prompts):
        with es.steer(model, bank, "calm", 0.4, layers="all", positions=rows[k]):
            alone = generate(model, padded([prompt]))
        assert alone[0, len(prompt) :].tolist() == together[k, ids.shape[1] :].tolist()


def test_beams(model, bank, batch, programs):
    with es.steer(model, bank, programs, layers="all"):
        together = generate(model, batch, num_beams=3, num_return_sequences=2)
    ids, mask = batch
    for k, program in enumerate(programs):
        row = ids[k : k + 1, mask[k].argmax() :]
        with es.steer(model, bank, program, layers="all"):
            alone = generate(model, (row, torch.ones_like(row)), num_beams=3, num_return_sequences=2)
        got = together[2 * k : 2 * k + 2, ids.shape[1] :]
        assert got.tolist() == alone[:, row.shape[1] :].tolist()


def test_several_returned_sequences(model, bank, batch, programs):
    """Each program's sequences are sampled from its own distribution."""
    with es.steer(model, bank, programs, layers="all"):
        with torch.no_grad():
            expected = model(
                input_ids=batch[0],
                attention_mask=batch[1],
                position_ids=(batch[1].cumsum(1) - 1).clamp(min=0),
            ).logits[:, -1]
        out = generate(
            model,
            batch,
            do_sample=True,
            num_return_sequences=3,
            max_new_tokens=2,
            min_new_tokens=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    got = out.logits[0].view(4, 3, -1)
    torch.testing.assert_close(got, expected[:, None].expand_as(got), rtol=1e-4, atol=1e-4)


def test_sampling_with_a_seed(model, bank, batch, programs):
    texts = []
    for _ in range(2):
        torch.manual_seed(3)
        with es.steer(model, bank, programs, layers="all"):
            texts.append(generate(model, batch, do_sample=True, temperature=0.8, top_p=0.9).tolist())
    assert texts[0] == texts[1]


def test_a_generate_function_of_ones_own(model, bank, prompts):
    """`custom_generate` with a function: what it runs is steered as what generate runs."""

    def loop(model, input_ids, *_given, **_named):
        for _ in range(NEW):
            logits = model(input_ids=input_ids, use_cache=False).logits
            input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], 1)
        return input_ids

    one = padded(prompts[:1])
    for positions in ("all", "generated", slice(2, 9)):
        with es.steer(model, bank, "calm", 0.3, layers="all", positions=positions):
            assert generate(model, one, custom_generate=loop).tolist() == generate(model, one).tolist()


@pytest.mark.parametrize(
    "how",
    [
        {"penalty_alpha": 0.6, "top_k": 3},
        {"num_beams": 2, "num_beam_groups": 2, "diversity_penalty": 0.5},
        {"dola_layers": "low"},
        {"num_beams": 2, "force_words_ids": [[7]]},
    ],
    ids=["contrastive", "diverse beams", "DoLa", "constraints"],
)
def test_modes_that_transformers_keeps_elsewhere(model, bank, prompts, how, monkeypatch):
    """Code of the Hub, which says so itself, steered or not; the model is as it was. Up to 4.56 transformers has some
    within: those steer the same tokens with a cache and without.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    one = padded(prompts[:1])
    plain = generate(model, one)
    for steering in (contextlib.nullcontext(), es.steer(model, bank, "calm", 0.3, positions="generated")):
        if Version(transformers.__version__) < Version("4.57") and "num_beams" in how:
            with steering:
                assert (
                    generate(model, one, **how).tolist()
                    == generate(model, one, use_cache=False, **how).tolist()
                )
            continue
        with steering, pytest.raises(Exception, match="transformers-community"):
            generate(model, one, **how)
    assert generate(model, one).tolist() == plain.tolist()


def test_streamers_and_stopping(model, bank, tiny_llama, prompts):
    from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

    class AtMost(StoppingCriteria):
        def __call__(self, ids, scores, **kwargs):
            return torch.full((len(ids),), ids.shape[1] >= len(prompts[0]) + 3, dtype=torch.bool)

    streamer = TextIteratorStreamer(tiny_llama[1], skip_prompt=True, timeout=PATIENCE)
    with es.steer(model, bank, "calm", 0.3, layers="all"):
        expected = generate(model, padded(prompts[:1]))
        text = generate(
            model,
            padded(prompts[:1]),
            streamer=streamer,
            min_new_tokens=0,
            stopping_criteria=StoppingCriteriaList([AtMost()]),
        )
    assert text.shape[1] == len(prompts[0]) + 3
    assert text[0].tolist() == expected[0, : text.shape[1]].tolist()
    assert "".join(streamer) == tiny_llama[1].decode(text[0, len(prompts[0]) :])


@pytest.mark.parametrize("positions", ["all", "prompt", "generated", slice(-1, None)], ids=ids_of)
def test_assisted_decoding(model, bank, prompts, positions):
    """A draft model proposes, the steered model decides: greedy text is that without a draft."""
    import copy

    draft = copy.deepcopy(model)
    torch.manual_seed(1)
    for parameter in draft.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    one = padded(prompts[:1])
    with es.steer(model, bank, "calm", 0.3, layers="all", positions=positions):
        how = {
            "max_new_tokens": 12,
            "min_new_tokens": None,
        }  # with a draft, older versions take no least length
        expected = generate(model, one, **how)
        assert generate(model, one, **how, assistant_model=draft).tolist() == expected.tolist()


def test_prompt_lookup_decoding(model, bank, prompts):
    one = padded([prompts[2] * 2])
    with es.steer(model, bank, "calm", 0.3, layers="all", positions="generated"):
        expected = generate(model, one, max_new_tokens=12)
        got = generate(model, one, max_new_tokens=12, prompt_lookup_num_tokens=3)
    assert got.tolist() == expected.tolist()


def test_without_an_attention_mask(model, bank, prompts):
    """generate takes the pad token for padding, and so does steering."""
    ids, mask = padded(prompts)
    with es.steer(model, bank, ["calm"] * 4, 0.3, layers="all", positions=slice(0, 2)):
        expected = generate(model, (ids, mask))
        got = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert got.tolist() == expected.tolist()


def test_embeddings_as_prompt(model, bank, prompts):
    ids, mask = padded(prompts)
    with es.steer(model, bank, ["calm"] * 4, 0.3, layers="all", positions=slice(0, 2)):
        expected = generate(model, (ids, mask))
        got = model.generate(
            inputs_embeds=model.get_input_embeddings()(ids),
            attention_mask=mask,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
        )
    assert got.tolist() == expected[:, ids.shape[1] :].tolist()


def test_a_cache_of_ones_own(model, bank, prompts):
    """A hand-written decode loop: the prompt of "generated" is the first forward pass."""
    from transformers import DynamicCache

    ids = torch.tensor([prompts[0]])
    with es.steer(model, bank, "calm", 0.4, layers="all", positions="generated"):
        expected = generate(model, (ids, torch.ones_like(ids)))[0, ids.shape[1] :].tolist()
        cache, step, text = DynamicCache(config=model.config), ids, []
        with torch.no_grad():
            for _ in range(NEW):
                logits = model(input_ids=step, past_key_values=cache, use_cache=True).logits
                step = logits[:, -1:].argmax(-1)
                text.append(int(step))
    assert text == expected


def test_a_program_changed_between_steps(model, bank, prompts):
    from transformers import LogitsProcessor, LogitsProcessorList

    one = padded(prompts[:1])

    class Switch(LogitsProcessor):
        steps = 0

        def __call__(self, ids, scores):
            self.steps += 1
            if self.steps == 3:
                steering.set(0, None)
            return scores

    with es.steer(model, bank, "calm", 0.5, layers="all") as steering:
        text = generate(model, one, logits_processor=LogitsProcessorList([Switch()]))
    # Three passes were steered: the prompt and two tokens after it.
    with es.steer(model, bank, "calm", 0.5, layers="all", positions=slice(0, len(prompts[0]) + 2)):
        assert text.tolist() == generate(model, one).tolist()
    with es.steer(model, bank, "calm", 0.5, layers="all"):
        assert text.tolist() != generate(model, one).tolist()
    assert steering.programs == (es.programs.Program(),)


def test_hidden_states_show_the_steered_stream(model, bank, batch, programs):
    ids, mask = batch
    for fused in (True, False):
        steering = es.steer(model, bank, programs, layers=[0, 1, 2], fused=fused)
        with steering, streams(model) as seen, torch.no_grad():
            states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        for layer in (0, 1, 2):
            assert torch.equal(states[layer + 1], seen[0][layer])
        with torch.no_grad():
            clean = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        assert not torch.equal(states[1][0, -1], clean[1][0, -1])
        # The row without a program; fused, the norms' kernel rounds once where the model rounds twice.
        torch.testing.assert_close(states[1][1], clean[1][1], rtol=0, atol=1e-5 if fused else 0)
