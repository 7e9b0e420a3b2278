"""Bounds on readings: exact where passed, nothing touched where not."""

import pytest
import torch

import emosteer as es
from emosteer.zscores import ZScores

from .steering.conftest import CONCEPTS, streams
from .test_monitoring import PROMPTS, bank_with_statistics, by_hand, generate, padded

IDS = torch.tensor([[5, 6, 7, 8, 30, 31], [9, 10, 11, 12, 40, 41]])


@pytest.fixture
def model(tiny_llama):
    return tiny_llama[0]


@pytest.fixture
def bank(model):
    return bank_with_statistics(model)


def stream(model, layer, ids=IDS):
    with streams(model) as seen, torch.no_grad():
        model(input_ids=ids)
    return seen[0][layer].clone()


@pytest.mark.parametrize("kind", ["cap", "floor"])
def test_bounds_the_reading_exactly(model, bank, kind):
    layer, k = 3, CONCEPTS.index("angry")
    before = stream(model, layer)
    z = by_hand(bank, layer, before)[..., k]
    middle = z.flatten().sort().values[5:7]
    bound = float(middle.mean())  # between two tokens
    passed = z > bound if kind == "cap" else z < bound
    assert 0 < int(passed.sum()) < passed.numel()
    with es.regulate(model, bank, **{kind: {"angry": bound}}, layers=[layer]):
        after = stream(model, layer)
    moved = by_hand(bank, layer, after)[..., k]
    assert torch.equal(after[~passed], before[~passed])  # bit for bit
    torch.testing.assert_close(moved[passed], torch.full_like(moved[passed], bound), rtol=0, atol=1e-5)
    torch.testing.assert_close(after.norm(dim=-1), before.norm(dim=-1), rtol=1e-5, atol=0)


def test_a_band(model, bank):
    with es.regulate(model, bank, cap={"angry": 0.5}, floor={"angry": 0.2}, layers=[1]):
        z = by_hand(bank, 1, stream(model, 1))[..., 1]
    assert bool(((z > 0.2 - 1e-5) & (z < 0.5 + 1e-5)).all())


def test_several_layers_have_bounds_of_their_own(model, bank):
    with es.regulate(model, bank, cap={"angry": 0.0}, layers=[1, 3]):
        with streams(model) as seen, torch.no_grad():
            model(input_ids=IDS)
        for layer in (1, 3):
            assert float(by_hand(bank, layer, seen[0][layer])[..., 1].max()) < 1e-5


def test_while_generating(model, bank):
    ids, mask = padded(PROMPTS)
    with es.regulate(model, bank, cap={"calm": -0.5}, layers=[2]), es.monitor(model, bank, layers=[2]) as m:
        generate(model, ids, mask)
    for running in (m.turns[0].prompt[2], m.turns[0].generated[2]):
        assert float(running.max[:, 0].max()) <= -0.5 + 1e-4
    with es.monitor(model, bank, layers=[2]) as m:
        generate(model, ids, mask)
    assert float(m.turns[0].prompt[2].max[:, 0].max()) > -0.5


def test_overlapping_concepts_disturb_each_other_by_no_more_than_said(model, bank):
    """A reading may end above its cap by at most Σ_j |δ_j cos_ij|, in the stream's units."""
    layer, before = 2, stream(model, 2).double()
    opposed = (bank.directions[layer] @ bank.directions[layer].T).flatten().argmin()
    names = [CONCEPTS[int(opposed) // len(CONCEPTS)], CONCEPTS[int(opposed) % len(CONCEPTS)]]
    scores = ZScores(bank, layer, names)
    caps = {name: float(scores(before.float())[..., i].quantile(0.3)) for i, name in enumerate(names)}
    with es.regulate(model, bank, cap=caps, layers=[layer]) as regulation:
        after = stream(model, layer).double()
    v = scores.directions.double()
    high = torch.tensor([scores.projection(name, caps[name]) for name in names], dtype=torch.float64)
    delta = torch.minimum(before @ v.T, high) - before @ v.T
    cosine = regulation.overlap[layer].double()
    torch.testing.assert_close(cosine, v @ v.T, rtol=1e-5, atol=1e-6)
    room = (delta.abs() @ (cosine.abs() - torch.eye(2))).clamp(min=0)
    assert bool((after @ v.T <= high + room + 1e-4).all())
    assert bool((after @ v.T > high + 1e-3).any())  # it does happen: directions overlap


def test_an_orthogonalised_set_is_bounded_exactly(model, bank):
    layer, names = 2, ("calm", "angry", "proud")
    straight = bank.orthogonalised(names)
    v = straight.directions[layer]
    torch.testing.assert_close(v @ v.T, torch.eye(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(v[0], bank.directions[layer][0])
    program = es.cap("calm", -0.1) + es.cap("angry", -0.1) + es.cap("proud", -0.1)
    with es.steer(model, straight, program, layers=[layer]):
        after = stream(model, layer)
    assert float((after @ v.T).max()) < -0.1 * bank.scale[layer] + 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r'nothing to regulate: pass cap=\{"desperate": 1.0\}'),
        ({"cap": {"angyr": 1.0}}, "angry"),
        ({"cap": {"angry": float("nan")}}, r"cap\['angry'\] must be a z-score"),
        ({"cap": {"angry": 0.0}, "floor": {"angry": 1.0}}, r"floor\['angry'\] = 1.0 lies above cap"),
        ({"cap": {"angry": 0.0}, "layers": [12]}, "layer 12 is outside the model"),
    ],
)
def test_bad_arguments(model, bank, arguments, message):
    with pytest.raises(ValueError, match=message):
        es.regulate(model, bank, **arguments)


def test_leaves_nothing(model, bank):
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with es.regulate(model, bank, cap={"angry": 0.0, "calm": 1.0}, layers=[1, 2]) as regulation:
        assert "block 1" in regulation.report()
        stream(model, 1)
    assert {name: dict(module.__dict__) for name, module in model.named_modules()} == before
