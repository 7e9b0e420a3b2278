"""Studies on a tiny model: their arithmetic against plain computations, and the report that they make."""

import json
import re

import pytest
import torch

import emosteer as es
from emosteer.emotions.validation import STUDIES, validate
from emosteer.emotions.validation.geometry import (
    between_layers,
    k_means,
    permutation_test,
    split_halves,
    vocabulary,
)
from emosteer.emotions.validation.lens import lens
from emosteer.emotions.validation.preference import ACTIVITIES, located
from emosteer.emotions.validation.reading import bench_stories, held_out, implicit_messages

from ..steering.conftest import streams
from .conftest import EMOTIONS, some_stories
from .test_circumplex import planted

CHATS = ["Shall we go?", "It is a long way from here to the sea, is it not?", "No."]


# ---- the setting -----------------------------------------------------------------------------------


def test_the_bank_is_that_of_extract(setting, tiny_llama):
    plain = es.extract(
        *tiny_llama, ((s.emotion, s.text) for s in some_stories()), neutral=es.emotions.neutral()
    )
    assert setting.bank.names == plain.names
    torch.testing.assert_close(setting.bank.directions[2], plain.directions[2], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(setting.bank.projection_std[2], plain.projection_std[2], rtol=1e-3, atol=1e-4)


def test_runs_in_batches_are_runs_alone(setting):
    """Mixed lengths and programs: each row as if it ran by itself."""
    prompts = [setting.chat([{"role": "user", "content": text}]) for text in CHATS]
    words = [setting.word(text) for text in (" yes", " of course", " n")]
    programs = [es.add("calm", 0.3), None, es.add("random 1", 0.3)]
    together = setting.log_probabilities(prompts, words, programs)
    nexts = setting.next_token(prompts, [30, 31], programs)
    texts = setting.generate(prompts, programs, max_new_tokens=6)
    z = setting.readings(prompts)
    for k in range(3):
        alone = setting.log_probabilities([prompts[k]], [words[k]], [programs[k]])
        assert together[k] == pytest.approx(alone[0], abs=1e-3)
        torch.testing.assert_close(
            nexts[k], setting.next_token([prompts[k]], [30, 31], [programs[k]])[0], rtol=1e-3, atol=1e-3
        )
        assert texts[k] == setting.generate([prompts[k]], [programs[k]], max_new_tokens=6)[0]
        torch.testing.assert_close(z[k], setting.readings([prompts[k]])[0], rtol=1e-3, atol=1e-3)
    plain = setting.log_probabilities(prompts, words)
    assert plain[1] == pytest.approx(together[1], abs=1e-3)
    assert abs(plain[0] - together[0]) > 1e-2


def test_only_masked_tokens_are_steered(setting):
    prompts = [setting.chat([{"role": "user", "content": text}]) for text in CHATS[:2]]
    programs = [es.add("calm", 0.5)] * 2
    none = [[False] * len(p) for p in prompts]
    everything = [[True] * len(p) for p in prompts]
    plain = setting.next_token(prompts, [30, 40])
    torch.testing.assert_close(
        setting.next_token(prompts, [30, 40], programs, none), plain, rtol=1e-4, atol=1e-4
    )
    whole = setting.next_token(prompts, [30, 40], programs)
    torch.testing.assert_close(
        setting.next_token(prompts, [30, 40], programs, everything), whole, rtol=1e-4, atol=1e-4
    )
    assert float((whole - plain).abs().max()) > 1e-2


def test_activities_are_found_in_the_question(setting):
    for a, b in zip(ACTIVITIES, ACTIVITIES[::-1]):
        ids, (first, second) = located(setting, a, b)
        assert setting.text(ids[first.start : first.stop]) == a
        assert setting.text(ids[second.start : second.stop]) == b
        assert first.stop <= second.start


# ---- studies ---------------------------------------------------------------------------------------


def test_permutation():
    """Planted structure is significant; among noise p is anything."""
    from emosteer.emotions.ratings import russell

    bank = planted()
    human = torch.tensor([russell()[w] for w in bank.names], dtype=torch.float64)
    real = permutation_test(bank, human[:, 0], human[:, 1], [3], [], 300, 0)
    assert real["valence"] == real["arousal"] == pytest.approx(1 / 301)
    noise = [permutation_test(planted(seed), human[:, 0], human[:, 1], [7], [], 300, 0) for seed in range(8)]
    assert min(one["valence"] for one in noise) > 0.003
    assert max(one["valence"] for one in noise) > 0.3


def test_similarity_and_clusters():
    import numpy as np

    bank = planted()
    similarity = between_layers(bank)
    upper = np.triu_indices(len(bank), 1)
    rows = [(d.double() @ d.double().T).numpy()[upper] for d in bank.directions.values()]
    np.testing.assert_allclose(similarity, np.corrcoef(rows), atol=1e-9)
    groups = k_means(bank, 3, 0)
    assert sorted(name for group in groups for name in group) == sorted(bank.names)
    where = {name: k for k, group in enumerate(groups) for name in group}
    assert where["sad"] != where["happy"]


def test_vocabulary_alone(setting):
    """Word weights by hand: what makes two emotions' stories alike without a model."""
    from types import SimpleNamespace

    words = {
        "happy": "sun sun bright",
        "joyful": "sun bright",
        "sad": "rain grey",
        "angry": "fire fist",
        "afraid": "fire grey",
    }
    stories = [es.emotions.Story(emotion, "t", text) for emotion, text in words.items()]
    names = tuple(words)
    human = torch.tensor([1.0, 0.9, -1.0, -0.8, -0.9], dtype=torch.float64)
    fake = SimpleNamespace(stories=stories, bank=SimpleNamespace(names=names))
    valence_r, arousal_r = vocabulary(fake, SimpleNamespace(valence=human, arousal=-human))
    assert valence_r > 0.9
    assert 0 <= arousal_r <= 1


def test_halves_of_the_topics(setting):
    """An emotion's own letters are in all its stories: both halves find it."""
    halves = split_halves(setting, setting.layer)
    assert halves["same"] > halves["other"] + 0.2
    assert -1 <= halves["rsa"] <= 1


@pytest.mark.parametrize("method", ["cosine", "lda"])
def test_directions_of_other_topics(method):
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(5).repeat(20)
    topic = [f"t{k // 5}" for k in range(100)]
    centre = 3 * torch.randn(5, 16, generator=generator).double()
    rows = centre[label] + torch.randn(100, 16, generator=generator).double()
    assert float((held_out(rows, label, topic, method).argmax(1) == label).double().mean()) > 0.95
    noise = torch.randn(100, 16, generator=generator).double()
    assert float((held_out(noise, label, topic, method).argmax(1) == label).double().mean()) < 0.45


def test_lens(tiny_llama):
    model, _ = tiny_llama
    rows = torch.randn(3, 32)
    with torch.no_grad():
        plain = model.lm_head(model.model.norm(rows))
    torch.testing.assert_close(lens(model, rows), plain, rtol=1e-4, atol=1e-4)
    with streams(model) as seen, torch.no_grad():  # and nothing is left behind
        before = model(torch.tensor([[5, 6, 7]])).logits
        after = model(torch.tensor([[5, 6, 7]])).logits
    assert torch.equal(before, after)
    assert seen


def test_implicit_messages_do_not_name_what_they_imply():
    from emosteer.emotions.check import forms

    messages = implicit_messages()
    assert len(messages) >= 10
    for message in messages:
        assert message["target"] in es.emotions.WORDS
        assert not forms(message["target"]).search(message["text"])


def test_other_authors_stories(bench_data):
    stories = bench_stories(bench_data, 5)
    assert len(stories) == 100
    assert len({story["topic"] for story in stories}) >= 4
    with pytest.raises(FileNotFoundError, match=r"no stories/\*.jsonl"):
        bench_stories(bench_data.parent, 5)


# ---- the whole -------------------------------------------------------------------------------------


def test_the_report(tiny_llama, tmp_path):
    said = []
    found = validate(
        *tiny_llama, tmp_path, stories=some_stories(), quick=True, strengths=(0.1, 0.3), say=said.append
    )
    assert [one.name for one in found] == list(STUDIES)
    assert said == ["directions", *STUDIES]
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert set(numbers) == {"about", *STUDIES}
    markdown = (tmp_path / "report.md").read_text()
    page = (tmp_path / "report.html").read_text()
    for one in found:
        assert one.findings
        assert f"## {one.title}" in markdown
        assert f'id="{one.name}"' in page
        for picture in one.pictures:
            assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert set(re.findall(r'src="([^"]{0,10})', page)) == {"data:image"}
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    lens_rows = numbers["lens"]["directions"]
    assert set(lens_rows) == set(EMOTIONS)
    assert "quick version" in markdown


def test_some_studies_with_norms_of_ones_own(tiny_llama, tmp_path):
    ratings = {word: (k % 3 - 1.0, k % 2 - 0.5) for k, word in enumerate(EMOTIONS)}
    (found,) = validate(*tiny_llama, tmp_path, stories=some_stories(), studies=["geometry"], ratings=ratings)
    assert "8 words" in found.method
    assert len(found.numbers["by_layer"]) == 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"studies": ["geometri"]}, ValueError, "studies has 'geometri'; there are geometry"),
        ({"strengths": (0.1, 0.05)}, ValueError, "strengths must be positive numbers, ascending"),
        ({"bench_data": "/nowhere"}, FileNotFoundError, "/nowhere has no folder stories"),
    ],
)
def test_bad_arguments(tiny_llama, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        validate(*tiny_llama, tmp_path, stories=some_stories(), **arguments)
