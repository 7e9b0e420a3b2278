"""Programs a request inside vLLM: each request what `es.steer` makes of it alone, whatever runs beside it."""

import os
import random
import time

import pytest
import torch

import emosteer as es
from emosteer.vllm import params
from tests.steering.conftest import padded

# Beyond this no divergence of two implementations' logits is rounding.
TIE = 1e-3
LAYERS = ("middle", [3, 10, 25])
POSITIONS = ("all", "generated", slice(-2, None), tuple(k % 5 in (1, 2, 4) for k in range(70)))


def programs():
    """Programs of all kinds, hard enough to change texts of this model."""
    kinds = [
        lambda s: es.add("calm", 2 * s),
        lambda s: es.add("angry", s) + es.cap("joyful", 0.5),
        lambda s: es.ablate("calm") + es.floor("proud", s),
        lambda s: es.rotate("weary", 4 * s),
        lambda s: es.hold("joyful", s) + es.add("angry", -s) + es.add("calm", s, preserve_norm=False),
    ]
    return [kinds[k % len(kinds)](4.0 + k / 7) for k in range(64)]


def of_transformers(model, bank, prompts, asked, length):
    """`(tokens, scores)` of prompts under `(program, layers, positions)` each, those of a kind in one batch."""
    found = {}
    for layers in LAYERS:
        for positions in POSITIONS:
            mine = [k for k, one in enumerate(asked) if one[1:] == (layers, positions)]
            ids, mask = padded([prompts[k] for k in mine])
            with es.steer(model, bank, [asked[k][0] for k in mine], layers=layers, positions=positions):
                out = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=length,
                    min_new_tokens=length,
                    eos_token_id=None,
                    do_sample=False,
                    output_scores=True,
                    return_dict_in_generate=True,
                )
            for row, k in enumerate(mine):
                tokens = out.sequences[row, ids.shape[1] :].tolist()
                found[k] = tokens, [step[row] for step in out.scores]
    return [found[k] for k in range(len(prompts))]


def same(found, wanted, scores):
    """Equal tokens, or a tie at the first that is not."""
    for step, (one, other) in enumerate(zip(found, wanted)):
        if one != other:
            return float(scores[step][other] - scores[step][one]) <= TIE
    return len(found) == len(wanted)


def test_each_request_is_that_of_transformers_under_its_own_program(engine, model, bank, prompts):
    """64 programs at two sets of layers and four kinds of positions; chunked prefill, preemption and resumption."""
    length = 12
    asked = [(program, LAYERS[k % 2], POSITIONS[k // 2 % 4]) for k, program in enumerate(programs())]
    before = engine.preemptions()
    there = engine.tokens(prompts, [params(p, layers=l, positions=at) for p, l, at in asked], length)
    assert engine.preemptions() > before
    here = of_transformers(model[0], bank, prompts, asked, length)
    wrong = [k for k in range(64) if not same(there[k], *here[k])]
    assert not wrong, [(asked[k], there[k], here[k][0]) for k in wrong[:3]]
    exact = sum(list(there[k]) == here[k][0] for k in range(64))
    assert exact >= 60  # a tie is rare
    unsteered = engine.tokens(prompts, [None] * 64, length)
    assert sum(one != other for one, other in zip(unsteered, there)) >= 56  # the programs do something


def test_unsteered_requests_among_steered_ones_are_those_of_vanilla_vllm(engine, prompts, elsewhere):
    found = elsewhere(prompts[:24], [None] * 24, 12)
    assert found["untouched"] == {"plugin": True, "steering": False, "own": [], "forwards": 0, "buffers": 0}
    mixed = [None if k % 2 == 0 else params(program) for k, program in enumerate(programs()[:48])]
    mixed_prompts = [prompts[k // 2] for k in range(48)]
    there = engine.tokens(mixed_prompts, mixed)
    assert [list(one) for one in there[::2]] == found["tokens"]
    steered = [list(one) for one in there[1::2]]
    assert sum(one != other for one, other in zip(steered, found["tokens"])) >= 20


def test_what_several_requests_ask_for_alike_has_one_row(engine, prompts):
    engine.tokens(prompts[:8], [params("calm +7.5", positions=at) for at in ("all", "generated") * 4], 2)
    rows = engine.steering.rows
    placed = engine.steering.deployment.placed
    from emosteer.vllm.asking import Asked

    one, other = (placed(Asked.of(params("calm +7.5", positions=at))) for at in ("all", "generated"))
    assert one.row == other.row
    assert sum(program == one.row for program in rows._program) == 1


def test_nothing_is_left_of_requests_that_have_ended(engine, prompts):
    """More programs than rows, aborts in the middle: no answer but that of its program alone, no row swapped.

    Each program twice; or for as long as EMOSTEER_TRAFFIC_SECONDS says.
    """
    llm, steering, seconds = engine.llm, engine.steering, float(os.environ.get("EMOSTEER_TRAFFIC_SECONDS", 0))
    generator = random.Random(2)
    asked = [
        params(es.add(name, 8 + k))
        for k in range(12)
        for name in ("calm", "angry", "joyful", "proud", "weary")
    ]
    chosen = [prompts[k] for k in range(len(asked))]
    length = 24 if seconds else 6  # long enough that caches overflow, and requests are preempted
    samples = range(0, len(asked), 1 if seconds else 6)
    alone = [list(engine.tokens([chosen[k]], [asked[k]], length)[0]) for k in samples]
    assert len(asked) > steering.rows.count
    from vllm import SamplingParams

    running, answers = {}, {}
    queue = list(range(len(asked))) * 2
    generator.shuffle(queue)
    number, preempted, until = 0, engine.preemptions(), time.monotonic() + seconds
    while queue or llm.llm_engine.has_unfinished_requests():
        if not queue and time.monotonic() < until:
            queue = random.Random(number).sample(range(len(asked)), len(asked))
        for _ in range(min(3, len(queue))):
            k = queue.pop()
            given = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, extra_args=asked[k])
            name = llm.llm_engine.add_request(f"mixed-{number}", {"prompt_token_ids": chosen[k]}, given)
            running[name] = k
            number += 1
        if running and generator.random() < 0.2:
            gone = generator.choice(sorted(running))
            llm.llm_engine.abort_request([gone], internal=True)
            del running[gone]
        for answer in llm.llm_engine.step():
            if answer.finished:
                name = next((n for n in running if n.startswith(answer.request_id)), None)
                if name is not None:
                    answers.setdefault(running.pop(name), []).append(list(answer.outputs[0].token_ids))
    for sample, wanted in zip(samples, alone):
        for found in answers.get(sample, []):
            assert found == wanted
    assert sum(len(v) for v in answers.values()) > 60
    assert engine.preemptions() > preempted or not seconds
    print(f"{number} requests, {engine.preemptions() - preempted:.0f} preemptions")
    engine.tokens([prompts[0]], [None], 1)  # a pass of nobody's that is steered
    assert bool((steering.tokens.value == -1).all())
    assert len(steering._placed) <= 1
    assert len(steering.rows) <= steering.rows.count


def test_texts_of_other_programs_are_not_taken_from_the_prefix_cache(engine, prompts):
    prompt = [token for p in prompts if len(p) == 80 for token in p][:150]
    fresh = engine.answers([prompt[:80]], [None])[0]
    engine.answers([prompt], [params("calm +20")])
    again, plain = engine.answers([prompt, prompt], [params("calm +20"), None])
    assert again.num_cached_tokens >= 128  # its own
    assert plain.num_cached_tokens <= 80  # those of the unsteered text before, none of the steered one
    later = engine.answers([prompt[:80]], [None])[0]
    assert later.outputs[0].token_ids == fresh.outputs[0].token_ids
    apart = engine.answers([prompt], [params("calm +20", positions="generated")])[0]
    assert apart.num_cached_tokens == 0


def test_sampled_twins_and_several_samples_share_a_program(engine, prompts, model, bank):
    """`n` samples of a request are all steered: the likeliest token of each is that of the program."""
    from vllm import SamplingParams

    given = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True, n=1, extra_args=params("calm +20"))
    several = SamplingParams(
        temperature=1e-3, seed=1, max_tokens=6, ignore_eos=True, n=3, extra_args=params("calm +20")
    )
    one, three = engine.llm.generate([{"prompt_token_ids": prompts[1]}] * 2, [given, several], use_tqdm=False)
    assert [out.token_ids for out in three.outputs] == [one.outputs[0].token_ids] * 3


BAD = {
    "an unknown concept": ({"emosteer": "clam +1"}, "no concept 'clam'; did you mean 'calm'"),
    "an unknown bank": ({"emosteer": "calm +1", "emosteer_bank": "moods"}, "no bank 'moods'; this engine has random"),
    "NaN": ({"emosteer": "calm +nan"}, "does not say what to do|not understood"),
    "infinity": ({"emosteer": "calm +1e999"}, "finite"),
    "beyond float32": ({"emosteer": "calm +1e300"}, "float32"),
    "a layer outside": ({"emosteer": "calm +1", "emosteer_layers": 30}, "layer 30 is outside the model"),
    "a layer far outside": ({"emosteer": "calm +1", "emosteer_layers": "0-99999999999"}, "layers must be like"),
    "layers of another type": ({"emosteer": "calm +1", "emosteer_layers": {"a": 1}}, "must be a text"),
    "no layers": ({"emosteer": "calm +1", "emosteer_layers": []}, "must be numbers"),
    "many layers": ({"emosteer": "calm +1", "emosteer_layers": [1] * 5000}, "at most 1,000"),
    "too many slots": ({"emosteer": "calm +1; angry +1; joyful +1; proud +1"}, "4 directions, this engine takes 3"),
    "a megabyte": ({"emosteer": "calm +1;" * 130_000}, "too long"),
    "no text": ({"emosteer": 7}, "must be a text"),
    "nothing": ({"emosteer": ""}, "names no concept"),
    "no program": ({"emosteer_bank": "random"}, "without a program"),
    "positions": ({"emosteer": "calm +1", "emosteer_positions": "later"}, "positions must be"),
    "a mask of more than two": ({"emosteer": "calm +1", "emosteer_positions": "mask:012"}, "positions must be"),
    "a giant mask": ({"emosteer": "calm +1", "emosteer_positions": f"mask:{'1' * 10**6}"}, "at most 100,000"),
    "a huge position": ({"emosteer": "calm +1", "emosteer_positions": f"{10**30}:"}, "beyond every text"),
    "a step of zero": ({"emosteer": "calm +1", "emosteer_positions": "::0"}, "at least 1"),
    "a mistyped key": ({"emosteer": "calm +1", "emosteer_layer": 3}, "no key of emosteer"),
    "a flag": ({"emosteer": "calm +1", "emosteer_relative": "maybe"}, "must be 0 or 1"),
    "contradiction": ({"emosteer": "calm >= 1 <= 0"}, "cannot be both"),
    "an unknown concept to read": ({"emosteer_read": "clam"}, "did you mean 'calm'"),
    "a layer that is not read": ({"emosteer_read": "calm", "emosteer_read_layers": 6}, r"reads at layers \[5, 15\]"),
    "z without statistics": ({"emosteer_read": "calm"}, "no statistics of its projections"),
    "an alarm without a bound": ({"emosteer_stop_at": "calm"}, 'must be like "desperate > 3'),
    "a bound of NaN": ({"emosteer_stop_at": "calm > nan"}, 'must be like "desperate > 3'),
    "nothing to read": ({"emosteer_read_layers": 5}, "without concepts"),
    "a prompt of no tokens": ({"emosteer": "calm +1", "emosteer_prompt": 0}, "from 1 on"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_programs_are_refused_in_words(engine, prompts, what):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    args, reason = BAD[what]
    with pytest.raises(VLLMValidationError, match=reason) as caught:
        engine.llm.generate({"prompt_token_ids": prompts[0]}, SamplingParams(extra_args=args), use_tqdm=False)
    assert len(str(caught.value)) < 20_000
    assert not engine.llm.llm_engine.has_unfinished_requests()


def test_relative_strengths_and_the_default_program(engine, model, bank, prompts):
    """Fractions of each token's own norm; and what the engine does by default, unless a request says "none"."""
    from emosteer.vllm.asking import Asked
    from emosteer.vllm.settings import Settings

    some = [prompts[k] for k in (0, 3, 8)]
    asked = params("calm +0.4", relative=True)
    there = engine.tokens(some, [asked] * 3, 8)
    deployment = engine.llm.llm_engine.input_processor.emosteer
    usual = deployment.settings
    deployment.settings = Settings(usual.banks, Asked.of(asked), usual.layers, usual.slots)
    try:
        by_default = engine.tokens(some, [None] * 3, 8)
        none = engine.tokens(some, [params("none")] * 3, 8)
    finally:
        deployment.settings = usual
    plain = engine.tokens(some, [None] * 3, 8)
    ids, mask = padded(some)
    with torch.no_grad(), es.steer(model[0], bank, "calm", 0.4, relative=True):
        out = model[0].generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, eos_token_id=None, do_sample=False
        )  # fmt: skip
    assert [list(one) for one in there] == out[:, ids.shape[1] :].tolist()
    assert by_default == there != plain
    assert none == plain
