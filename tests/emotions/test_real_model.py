"""The built-in model: bounds that hold on it, and the geometry of what comes along."""

import pytest
import torch
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import emosteer as es
from emosteer.calibration.grid import with_random
from emosteer.emotions.validation.sentiment import OPENINGS
from emosteer.zscores import ZScores

from ..steering.conftest import streams
from ..stories import few_stories

pytestmark = pytest.mark.xdist_group("real model")
LAYER = 20
EMOTIONS = ("calm", "joyful", "desperate", "angry", "sad", "afraid")
TEXT = (
    "He ran from door to door and hammered on every one of them. Nobody came. The water was at his knees, and "
    "his little girl had stopped crying. Please, he shouted, please, somebody! Then the sun came out over the lake "
    "and the boats lay still at their moorings."
)


@pytest.fixture(scope="module")
def bank(smollm2):
    """Six emotions in two situations."""
    model, tok = smollm2
    return es.extract(model, tok, few_stories(EMOTIONS), layers=[LAYER])


def stream(model, ids):
    with streams(model) as seen, torch.no_grad():
        model(input_ids=ids)
    return seen[0][LAYER][0].clone()


@pytest.mark.model
def test_a_cap_bounds_the_reading_and_touches_nothing_below_it(smollm2, bank):
    model, tok = smollm2
    ids = tok(TEXT, return_tensors="pt").input_ids
    scores = ZScores(bank, LAYER, ["desperate"])
    before = stream(model, ids)
    z = scores(before)[:, 0]
    middle = z.sort().values[len(z) // 2 - 1 :][:2]
    cap = float(middle.mean())  # between two tokens
    over = z > cap
    assert 5 < int(over.sum()) < len(z) - 5
    with es.regulate(model, bank, cap={"desperate": cap}, layers=[LAYER]):
        after = stream(model, ids)
    assert torch.equal(after[~over], before[~over])  # bit for bit
    torch.testing.assert_close(scores(after)[over, 0], torch.full((int(over.sum()),), cap), rtol=0, atol=2e-3)
    torch.testing.assert_close(after.norm(dim=1), before.norm(dim=1), rtol=1e-5, atol=0)


@pytest.mark.model
def test_overlapping_caps_miss_by_no_more_than_said(smollm2, bank):
    """Several caps act at once; each reading ends above its own by at most Σ_j |δ_j cos_ij|."""
    model, tok = smollm2
    ids = tok(TEXT, return_tensors="pt").input_ids
    names = ["desperate", "afraid", "sad"]
    scores = ZScores(bank, LAYER, names)
    before = stream(model, ids)
    caps = {name: float(scores(before)[:, k].quantile(0.4)) for k, name in enumerate(names)}
    with es.regulate(model, bank, cap=caps, layers=[LAYER]) as regulation:
        after = stream(model, ids)
    v = scores.directions.double()
    high = torch.tensor([scores.projection(name, caps[name]) for name in names], dtype=torch.float64)
    delta = torch.minimum(before.double() @ v.T, high) - before.double() @ v.T
    cosine = regulation.overlap[LAYER].double()
    assert float((cosine - torch.eye(3)).abs().max()) > 0.1  # they do overlap
    room = delta.abs() @ (cosine.abs() - torch.eye(3).double()).clamp(min=0)
    over = after.double() @ v.T - high
    assert bool((over <= room + 1e-2).all())
    # an orthogonalised set holds each bound exactly
    straight = bank.orthogonalised(names)
    w = straight.directions[LAYER].double()
    unit = bank.scale[LAYER]
    low = {name: float((before.double() @ w.T)[:, k].quantile(0.4)) / unit for k, name in enumerate(names)}
    program = (
        es.cap(names[0], low[names[0]]) + es.cap(names[1], low[names[1]]) + es.cap(names[2], low[names[2]])
    )
    with es.steer(model, straight, program, layers=[LAYER]):
        after = stream(model, ids)
    bound = torch.tensor([low[name] * unit for name in names], dtype=torch.float64)
    assert float((after.double() @ w.T - bound).max()) < 1e-2


@pytest.mark.model
def test_a_monitor_hears_what_a_text_is_about(smollm2, bank):
    """A story that the bank has not seen, of an emotion that it has: read above the opposite one."""
    model, tok = smollm2
    unseen = sorted({story.topic for story in es.emotions.corpus()})[-1]
    stories = {s.emotion: s.text for s in es.emotions.corpus().only(["calm", "afraid"]) if s.topic == unseen}
    means = {}
    for emotion, text in stories.items():
        with es.monitor(model, bank, layers=[LAYER]) as m, torch.no_grad():
            model(input_ids=tok(text, return_tensors="pt").input_ids)
        means[emotion] = dict(m.turns[0].prompt[LAYER].top(len(bank)))
    assert means["calm"]["calm"] - means["afraid"]["calm"] > 0
    assert means["afraid"]["afraid"] - means["calm"]["afraid"] > 0


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.full
def test_the_circumplex_of_what_comes_along(smollm2):
    """The stories were revised with this model's components in view (see the data card): usable, not independent."""
    bank = es.extract(*smollm2, few_stories(topics=1, neutral=32), layers=(18, 20, 22), progress=False)
    assert len(bank) == 171
    found = [es.circumplex(bank, layer) for layer in bank.layers]
    assert max(min(one.valence_r / 0.80, one.arousal_r / 0.65) for one in found) >= 1, found


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.full
def test_directions_are_causal(smollm2):
    """Texts written under "joyful" are pleasant and under "desperate" unpleasant; random directions do neither."""
    model, tok = smollm2
    stories = few_stories(EMOTIONS, topics=4, neutral=32)
    bank = es.extract(model, tok, stories, layers=range(12, 22), progress=False)
    bank = with_random(bank, ("joyful", "desperate"), 4, seed=0)
    arms = [None, *bank.names]
    programs = [es.add(arm, 0.05) if arm else None for arm in arms for _ in OPENINGS]
    inputs = tok(list(OPENINGS) * len(arms), return_tensors="pt", padding=True)
    with es.steer(model, bank, programs, layers=range(12, 22)), torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    texts = tok.batch_decode(out[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    judge = SentimentIntensityAnalyzer()
    scores = torch.tensor([judge.polarity_scores(text)["compound"] for text in texts])
    mean = dict(zip(arms, scores.view(len(arms), -1).mean(1).tolist()))
    assert mean["joyful"] - mean["desperate"] >= 0.8, mean
    for arm in arms[3:]:
        assert abs(mean[arm] - mean[None]) <= 0.25, mean
