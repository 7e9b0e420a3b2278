"""Watching a model: the scores are those of the residual stream, whatever the batch, cache or steering."""

import pytest
import torch

import emosteer as es
from emosteer.models.blocks import find_decoder
from emosteer.zscores import ZScores

from .steering.conftest import CONCEPTS, padded, streams


def bank_with_statistics(model, seed=0):
    decoder = find_decoder(model)
    generator = torch.Generator().manual_seed(seed)

    def per_layer(make):
        return {layer: make() for layer in range(decoder.depth)}

    k = len(CONCEPTS)
    return es.Bank(
        CONCEPTS,
        per_layer(lambda: torch.randn(k, decoder.dim, generator=generator)),
        mean=per_layer(lambda: torch.randn(decoder.dim, generator=generator)),
        scale=per_layer(lambda: 2.0),
        projection_mean=per_layer(lambda: torch.randn(k, generator=generator)),
        projection_std=per_layer(lambda: torch.rand(k, generator=generator) + 0.5),
    )


@pytest.fixture
def model(tiny_llama):
    return tiny_llama[0]


@pytest.fixture
def bank(model):
    return bank_with_statistics(model)


PROMPTS = [[75, 29, 44, 8, 43, 228, 166], [136, 21, 9], [50, 61, 72, 83, 94]]


def by_hand(bank, layer, hidden):
    """float64 z-scores of `[..., D]` rows."""
    centred = hidden.double() - bank.mean[layer].double()
    p = centred @ bank.directions[layer].double().T
    return (p - bank.projection_mean[layer].double()) / bank.projection_std[layer].double()


def test_z_scores(bank):
    x = torch.randn(3, 5, bank.dim) * 3
    scores = ZScores(bank, 2)
    torch.testing.assert_close(scores(x).double(), by_hand(bank, 2, x), rtol=1e-4, atol=1e-4)
    p = scores.projection("angry", 1.5)
    v = bank.directions[2][1]
    moved = x[0, 0] + (p - float(x[0, 0] @ v)) * v
    assert float(scores(moved)[1]) == pytest.approx(1.5, abs=1e-4)


def generate(model, ids, mask, **kwargs):
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    return model.generate(input_ids=ids, attention_mask=mask, **{**settings, **kwargs})


@pytest.mark.parametrize("steered", [None, "before", "after"])
@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"prefill_chunk_size": 3}], ids=str)
def test_running_scores_of_a_generation(model, bank, steered, how):
    ids, mask = padded(PROMPTS)
    steering = es.steer(model, bank, ["calm", None, "angry"], 0.5, layers="all")
    watch = es.monitor(model, bank, layers=[1, 3])
    contexts = {None: [watch], "before": [steering, watch], "after": [watch, steering]}[steered]
    for context in contexts:
        context.attach()
    try:
        text = generate(model, ids, mask, **how)
    finally:
        for context in reversed(contexts):
            context.detach()
    (turn,) = watch.turns
    for row, prompt in enumerate(PROMPTS):
        whole = torch.tensor([[*prompt, *text[row, ids.shape[1] : -1].tolist()]])  # the last is never read
        alone = [None if p is None else es.add(p, 0.5) for p in ("calm", None, "angry")][row]
        program = alone if steered else None
        with es.steer(model, bank, program, layers="all"), streams(model) as seen, torch.no_grad():
            model(input_ids=whole)
        for layer in (1, 3):
            z = by_hand(bank, layer, seen[0][layer][0])
            for running, part in (
                (turn.prompt[layer], z[: len(prompt)]),
                (turn.generated[layer], z[len(prompt) :]),
            ):
                assert int(running.count[row]) == len(part)
                close = {"rtol": 1e-3, "atol": 1e-3}
                torch.testing.assert_close(running.mean[row].double(), part.mean(0), **close)
                torch.testing.assert_close(running.max[row].double(), part.amax(0), **close)
                torch.testing.assert_close(running.last[row].double(), part[-1], **close)


def test_alarms(model, bank):
    """One alarm a turn for each row and concept that passes, with the token where it happened."""
    ids, mask = padded(PROMPTS)
    seen = {}

    def keep(layer, z, valid):
        seen.setdefault(layer, []).append((z.clone(), valid))

    with es.monitor(model, bank, layers=[2], on_scores=keep):
        generate(model, ids, mask)
    rows = [
        torch.cat([z[row] if valid is None else z[row, valid[row]] for z, valid in seen[2]])
        for row in range(len(PROMPTS))
    ]
    limit = float(torch.cat(rows)[:, 1].quantile(0.8))
    heard = []
    with es.monitor(model, bank, {"angry": limit}, layers=[2], on_alarm=heard.append) as m:
        generate(model, ids, mask)
        generate(model, ids, mask)
    expected = {}
    for row, z in enumerate(rows):
        over = (z[:, 1] > limit).nonzero().flatten()
        if len(over):
            expected[row] = (int(over[0]), float(z[over[0], 1]))
    assert expected
    for turn in (0, 1):
        got = {a.row: (a.token, a.z) for a in m.alarms if a.turn == turn}
        assert got.keys() == expected.keys()
        for row, (token, z) in expected.items():
            assert got[row][0] == token
            assert got[row][1] == pytest.approx(z, abs=1e-4)
    assert heard == m.alarms
    assert {a.concept for a in heard} == {"angry"}
    assert len(m.turns) == 2


def test_an_alarm_can_stop_the_run(model, bank):
    ids, mask = padded(PROMPTS)

    def stop(alarm):
        raise InterruptedError(alarm.concept)

    before = model.model.layers[0].__dict__.get("forward")
    with (
        pytest.raises(InterruptedError, match="calm"),
        es.monitor(model, bank, {"calm": -100.0}, on_alarm=stop),
    ):
        generate(model, ids, mask)
    assert model.model.layers[0].__dict__.get("forward") is before
    assert "generate" not in model.__dict__


def test_beams_and_sampling(model, bank):
    ids, mask = padded(PROMPTS)
    with es.monitor(model, bank) as m:
        generate(model, ids, mask, num_beams=2)
        generate(model, ids, mask, do_sample=True, num_return_sequences=3)
    assert [turn.batch for turn in m.turns] == [6, 9]
    for turn in m.turns:
        (layer,) = turn.prompt
        assert turn.generated[layer].count.tolist() == [4] * turn.batch


def test_passes_outside_generate(model, bank):
    """Each pass that starts a sequence is a turn of its own; passes on a cache go on with it."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    with es.monitor(model, bank, layers=[0]) as m, torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
        model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
        model(input_ids=torch.tensor([[8]]), past_key_values=cache, use_cache=True)
        model(input_ids=torch.tensor([[9]]), past_key_values=cache, use_cache=True)
    assert [(t.prompt[0].count.tolist(), t.generated[0].count.tolist()) for t in m.turns] == [
        ([3], [0]),
        ([3], [2]),
    ]


def test_top(model, bank):
    with es.monitor(model, bank, concepts=["proud", "angry", "calm"], layers=[1]) as m, torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    running = m.turns[0].prompt[1]
    top = running.top(2)
    assert [name for name, _ in top] == [
        running.names[k] for k in running.mean[0].argsort(descending=True)[:2]
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"thresholds": {"angyr": 1.0}}, "angry"),
        ({"thresholds": {"angry": float("nan")}}, "thresholds.*nan"),
        ({"concepts": ["clam"]}, "calm"),
        ({"layers": [7]}, "layer 7 is outside the model"),
    ],
)
def test_bad_arguments(model, bank, arguments, message):
    with pytest.raises(ValueError, match=message):
        es.monitor(model, bank, **arguments)


def test_a_bank_without_statistics(model, bank):
    bare = es.Bank(bank.names, bank.directions)
    with pytest.raises(ValueError, match="no statistics.*es.extract"):
        es.monitor(model, bare)
    with pytest.raises(ValueError, match="no statistics.*es.extract"):
        es.regulate(model, bare, cap={"angry": 1.0})


def test_a_concept_that_never_varied(bank):
    still = es.Bank(
        bank.names,
        bank.directions,
        projection_mean=bank.projection_mean,
        projection_std={l: s * torch.tensor([1.0, 0, 1, 1, 1, 1]) for l, s in bank.projection_std.items()},
    )
    with pytest.raises(ValueError, match="'angry' never varied"):
        ZScores(still, 0)
    ZScores(still, 0, ["calm"])


def test_compiled(model, bank):
    """The blocks of a compiled model run eagerly while it is watched; a full graph cannot."""
    import torch._dynamo

    ids = torch.tensor([[5, 6, 7]])
    with es.monitor(model, bank) as m, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    (layer,) = m.layers
    expected = m.turns[0].prompt[layer].mean
    torch._dynamo.reset()
    try:
        with es.monitor(model, bank) as m, torch.no_grad():
            torch.compile(model, backend="eager")(input_ids=ids, use_cache=False)
            torch.testing.assert_close(m.turns[0].prompt[layer].mean, expected, rtol=1e-3, atol=1e-3)
            torch._dynamo.reset()
            with pytest.raises(
                torch._dynamo.exc.Unsupported, match=r"es\.monitor reads the blocks|Monitor\._"
            ):
                torch.compile(model, backend="eager", fullgraph=True)(input_ids=ids, use_cache=False)
    finally:
        torch._dynamo.reset()


def test_a_step_asks_the_device_once(model, bank, monkeypatch):
    """All layers are looked at by one copy to the host; the alarms are those of a look at each."""
    ids, mask = padded(PROMPTS)
    limits = dict.fromkeys(CONCEPTS, 1.0)
    copies, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: (copies.append(self.shape), cpu(self))[1])
    with es.monitor(model, bank, limits, layers=range(len(bank.layers))) as seen:
        generate(model, ids, mask, max_new_tokens=3, min_new_tokens=3)
    layers, k = len(bank.layers), len(CONCEPTS)
    steps = [shape for shape in copies if shape == (layers, len(PROMPTS), k)]
    assert len(steps) == 2
    assert (
        len([shape for shape in copies if len(shape) > 1]) == len(steps) + layers
    )  # and once a layer of the prompt
    for alarm in seen.alarms:
        turn = seen.turns[alarm.turn]
        first = turn.prompt[alarm.layer].max[alarm.row, CONCEPTS.index(alarm.concept)]
        prompt = len(PROMPTS[alarm.row])
        assert (alarm.token < prompt) == (float(first) > 1.0), alarm
        assert alarm.z > 1.0
    assert any(alarm.token >= len(PROMPTS[alarm.row]) for alarm in seen.alarms)


@pytest.mark.parametrize("name", ["mamba", "mamba2", "rwkv", "jamba", "recurrent_gemma"])
def test_recurrent_and_hybrid_caches(name):
    """A recurrent cache does not say how many columns it holds: each generated token counts nevertheless, once."""
    from .steering.conftest import random_bank
    from .steering.tiny import tiny

    torch.manual_seed(0)
    model = tiny(name)
    plain = random_bank(model)
    zeros, ones = ({layer: f(len(plain)) for layer in plain.layers} for f in (torch.zeros, torch.ones))
    bank = es.Bank(
        plain.names, plain.directions, scale=plain.scale, projection_mean=zeros, projection_std=ones
    )
    ids = torch.arange(5, 12)[None]
    for cached in (True, False):
        with es.monitor(model, bank, layers=[1]) as monitor:
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=5,
                do_sample=False,
                eos_token_id=None,
                use_cache=cached,
            )
        (turn,) = monitor.turns
        assert turn.prompt[1].count.tolist() == [7]
        assert turn.generated[1].count.tolist() == [4]  # the last one is not read: it goes through no block
        with es.monitor(model, bank, layers=[1]) as whole, torch.no_grad():
            model(input_ids=out[:, :-1], use_cache=False)
        total = whole.turns[0].prompt[1].mean * 11
        torch.testing.assert_close(
            turn.prompt[1].mean * 7 + turn.generated[1].mean * 4, total, rtol=1e-3, atol=1e-3
        )
