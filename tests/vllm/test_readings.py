"""What is read of requests: the streams of transformers, whatever is cut up and preempted; alarms end requests."""

import numpy as np
import pytest
import torch

import emosteer as es
from emosteer.vllm import params, readings

LAYERS = [5, 15]
CONCEPTS = ["calm", "angry"]
PROGRAMS = [None, "calm +6", "angry = 0; joyful +5", None]


def streams_of(model, bank, program, tokens):
    """layer → float64 `[T, K]`: projections of the steered stream of a text, in the bank's units."""
    found = {}

    def hook(layer):
        def see(_block, _args, output):
            hidden = output if isinstance(output, torch.Tensor) else output[0]
            found[layer] = (hidden[0].double() @ directions[layer].T).numpy() / bank.scale[layer]

        return see

    columns = [bank.index(concept) for concept in CONCEPTS]
    directions = {layer: bank.directions[layer][columns].double() for layer in LAYERS}
    blocks = model.model.layers
    steering = es.steer(model, bank, es.spelling.program(program or "none"), fused=False)
    with torch.no_grad(), steering:
        hooks = [blocks[layer].register_forward_hook(hook(layer)) for layer in LAYERS]
        try:
            model(torch.tensor([tokens]))
        finally:
            for one in hooks:
                one.remove()
    return found


def test_readings_are_those_of_transformers(engine, model, bank, prompts):
    """Each kind of folding and of places, beside requests that read nothing; chunked, preempted, resumed."""
    kinds = [("each", "-1:"), ("sum", "all"), ("mean", "generated"), ("max", "1:")]
    asked, texts = [], []
    for k in range(16):
        program, (fold, at) = PROGRAMS[k % 4], kinds[k // 4]
        texts.append(prompts[k])
        asked.append(
            params(
                program,
                read=CONCEPTS,
                read_layers=LAYERS,
                read_positions=at,
                read_as=fold,
                read_unit="projection",
            )
        )
        texts.append(prompts[k])
        asked.append(None)
    before, length = engine.preemptions(), 24
    answers = engine.answers(texts, asked, length)
    assert engine.preemptions() > before
    for k in range(16):
        answer, (fold, at) = answers[2 * k], kinds[k // 4]
        with pytest.raises(ValueError, match="no readings"):
            readings(answers[2 * k + 1])
        found, prompt = readings(answer), len(texts[2 * k])
        written = [*texts[2 * k], *answer.outputs[0].token_ids]
        streams = streams_of(model[0], bank, PROGRAMS[k % 4], written[:-1])
        places = range({"-1:": prompt - 1, "all": 0, "generated": prompt, "1:": 1}[at], len(written) - 1)
        rows = np.stack([streams[layer][list(places)].T for layer in LAYERS])
        folded = {
            "each": lambda x: x,
            "sum": lambda x: x.sum(2),
            "mean": lambda x: x.mean(2),
            "max": lambda x: x.max(2),
        }
        wanted = folded[fold](rows)
        assert found.count == len(places)
        assert found.places == (tuple(places) if fold == "each" else ())
        assert found.values.shape == wanted.shape
        assert np.abs(found.values - wanted).max() <= 2e-4 * max(np.abs(rows).max(), np.abs(wanted).max())
        assert (found.of("angry", 15) == found.values[1, 1]).all()
    # One reading a generated token, and steering shows in what is read of the same prompt.
    assert readings(answers[0]).values.shape[2] == length
    assert abs(readings(answers[2]).values[1] - readings(answers[0]).values[1]).max() > 0.1


def test_an_alarm_ends_the_request_that_it_goes_off_in(engine, prompts):
    asked = params("calm +6", read="calm", read_layers=15, read_unit="projection")
    plains = engine.answers(prompts[:4], [asked] * 4, 12)
    records = [
        (which, k)
        for which, plain in enumerate(plains)
        for k, reading in enumerate(readings(plain).of("calm"))
        if k > 1 and reading > readings(plain).of("calm")[:k].max() + 0.01
    ]
    which, most = records[-1]
    plain, asking, prompt = plains[which], prompts[which], len(prompts[which])
    read = readings(plain).of("calm")
    bound = (read[most] + read[:most].max()) / 2
    stopping = params("calm +6", stop_at={"calm": bound}, read_layers=15, read_unit="projection")
    never = params("calm +6", stop_at={"calm": 1e6}, read_layers=15, read_unit="projection")
    stopped, unstopped, beside = engine.answers([asking] * 3, [stopping, never, None], 12)
    out = stopped.outputs[0]
    assert list(out.token_ids) == list(plain.outputs[0].token_ids)[: most + 1]
    assert out.finish_reason == "stop"
    assert out.stop_reason.startswith("emosteer: calm ")
    alarm = readings(stopped).alarm
    assert (alarm["concept"], alarm["layer"], alarm["place"]) == ("calm", 15, prompt - 1 + most)
    assert alarm["reading"] == pytest.approx(read[most], abs=1e-4)
    assert readings(unstopped).alarm is None
    assert unstopped.outputs[0].token_ids == plain.outputs[0].token_ids
    assert (unstopped.outputs[0].finish_reason, beside.outputs[0].finish_reason) == ("length", "length")


def test_a_prompt_is_read_whole_though_it_is_cached(engine, prompts):
    prompt = prompts[0] * (70 // len(prompts[0]) + 1)
    asked = params(
        read="calm", read_layers=15, read_positions="prompt", read_as="sum", read_unit="projection"
    )
    engine.answers([prompt], [None], 1)
    first, again = (readings(engine.answers([prompt], [asked], 1)[0]) for _ in range(2))
    assert first.count == again.count == len(prompt)
    assert again.values == pytest.approx(first.values, rel=1e-5)
    assert engine.answers([prompt], [None], 1)[0].num_cached_tokens >= 64  # others still share


def test_a_prompt_that_says_where_it_ends(engine):
    """What follows counts as generated: it is steered, and read, as when it was."""
    prompt = [400, 401, 402, 403, 404]
    what = dict(positions="generated", read="calm", read_layers=15, read_unit="projection")
    (written,) = engine.answers([prompt], [params("calm +8", **what)], 6)
    whole = [*prompt, *written.outputs[0].token_ids]
    scored, other = (
        readings(
            engine.answers([whole], [params(program, prompt=5, read_positions="generated", **what)], 1)[0]
        )
        for program in ("calm +8", "none")
    )
    assert scored.places == (5, 6, 7, 8, 9, 10)
    assert scored.of("calm")[:5] == pytest.approx(readings(written).of("calm")[1:], abs=1e-4)
    assert np.abs(scored.of("calm") - other.of("calm")).max() > 0.1


def test_readings_that_cannot_be_had(engine, prompts):
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError, match="n=2 samples of one request cannot be read"):
        engine.llm.generate(
            {"prompt_token_ids": prompts[0]},
            SamplingParams(n=2, extra_args=params(read="calm", read_unit="projection")),
            use_tqdm=False,
        )


def test_what_is_asked_comes_back():
    import json

    from emosteer.vllm.asking import Asked

    given = params(
        "calm +0.1", prompt=3, read="calm, proud", stop_at={'a > "b"; c': 3.0}, read_layers=[1, 0.5],
        read_positions=slice(2, None), read_as="max",
    )  # fmt: skip
    assert json.loads(json.dumps(given)) == given
    asked = Asked.of(given)
    assert asked.extra_args() == given
    assert asked.prompt == 3
    assert asked.reads.concepts == ("calm", "proud", 'a > "b"; c')
    assert asked.reads.stop_at == (('a > "b"; c', 3.0),)
    assert Asked.of({"emosteer_stop_at": "very angry>2;calm > -1e1"}).reads.stop_at == (
        ("very angry", 2.0),
        ("calm", -10.0),
    )
    assert not {"emosteer", "emosteer_layers"} & params(read=["calm"]).keys()
    with pytest.raises(ValueError, match="nothing is asked for"):
        params()
    with pytest.raises(ValueError, match=r"stop_at\['calm'\] must be a finite number"):
        params(stop_at={"calm": float("nan")})
