"""Extraction: the recipe computed by hand, batches that do not matter, interruptions that lose nothing."""

import pytest
import torch

import emosteer as es
from emosteer.models.batching import Text, batches, counted_from

from .steering.conftest import streams

STORIES = [
    ("calm", "the lake was still and the boat lay quiet in the reeds"),
    ("calm", "she breathed out slowly"),
    ("angry", "he slammed the door so hard that the glass broke in its frame"),
    ("angry", "x"),
    ("proud", "they carried her on their shoulders through the town and back again twice"),
    ("proud", "first prize, again"),
]
NEUTRAL = [
    "the bus leaves at nine and at ten",
    "two cups of flour and one of milk",
    "the form has three pages",
]


def by_hand(model, tok, layer, skip, denoise):
    """The recipe on whole matrices, one text at a time, in float64."""

    def tokens(text):
        ids = tok(text, return_tensors="pt").input_ids
        with streams(model) as seen, torch.no_grad():
            model(input_ids=ids)
        return seen[0][layer][0][min(skip, ids.shape[1] // 2) :].double()

    names = list(dict.fromkeys(label for label, _ in STORIES))
    means = torch.stack(
        [torch.stack([tokens(t).mean(0) for label, t in STORIES if label == n]).mean(0) for n in names]
    )
    vectors = means - means.mean(0)
    if denoise:
        rows = torch.cat([tokens(t) for t in NEUTRAL])
        rows = rows - rows.mean(0)
        _, s, vh = torch.linalg.svd(rows, full_matrices=False)
        k = int((s.square().cumsum(0) / s.square().sum() >= denoise).int().argmax()) + 1
        vectors = vectors - vectors @ vh[:k].T @ vh[:k]
    norms = torch.cat([tokens(t).norm(dim=1) for _, t in STORIES])
    return names, vectors, means.mean(0), float(norms.mean())


@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
@pytest.mark.parametrize("denoise", [0.0, 0.5])
def test_the_recipe(tiny_llama, batch_tokens, denoise):
    model, tok = tiny_llama
    bank = es.extract(
        model, tok, STORIES, neutral=NEUTRAL, skip_tokens=10, denoise=denoise, batch_tokens=batch_tokens
    )
    assert bank.layers == (0, 1, 2, 3)
    for layer in bank.layers:
        names, vectors, mean, scale = by_hand(model, tok, layer, 10, denoise)
        assert list(bank.names) == names
        got = bank.directions[layer].double() * bank.magnitude[layer].double()[:, None]
        torch.testing.assert_close(got, vectors, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(bank.mean[layer].double(), mean, rtol=1e-4, atol=1e-4)
        assert bank.scale[layer] == pytest.approx(scale, rel=1e-4)
        assert bool((bank.projection_std[layer] > 0).all())


def test_layers_and_a_generator(tiny_llama):
    model, tok = tiny_llama
    whole = es.extract(model, tok, STORIES)
    some = es.extract(model, tok, (pair for pair in STORIES), layers=[1, 0.99])
    assert some.layers == (1, 3)
    torch.testing.assert_close(some.directions[1], whole.directions[1], rtol=1e-3, atol=1e-4)


def test_the_neutral_texts_that_a_corpus_brings_along(tiny_llama):
    model, tok = tiny_llama
    corpus = es.emotions.Corpus(es.emotions.Story(label, "letter", text) for label, text in STORIES)
    corpus.neutral = tuple(NEUTRAL)
    given = es.extract(model, tok, STORIES, neutral=NEUTRAL)
    brought = es.extract(model, tok, corpus)
    torch.testing.assert_close(given.directions[2], brought.directions[2])
    assert brought.provenance["texts"] == {"stories": 6, "neutral": 3}


def test_an_interrupted_extraction_goes_on(tiny_llama, tmp_path, monkeypatch):
    from emosteer import extraction

    model, tok = tiny_llama
    file = tmp_path / "state.safetensors"
    expected = es.extract(model, tok, STORIES, neutral=NEUTRAL, batch_tokens=1)
    count, seen = extraction._Pass._count_batch, []

    def break_off(self, batch, kind):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(batch)
        count(self, batch, kind)

    monkeypatch.setattr(extraction._Pass, "_count_batch", break_off)
    with pytest.raises(KeyboardInterrupt):
        es.extract(model, tok, STORIES, neutral=NEUTRAL, batch_tokens=1, checkpoint=file)
    monkeypatch.setattr(extraction._Pass, "_count_batch", count)
    with pytest.raises(ValueError, match="made from other texts"):
        es.extract(model, tok, STORIES[::-1], neutral=NEUTRAL, batch_tokens=1, checkpoint=file)
    with pytest.raises(ValueError, match="skip_tokens differ"):
        es.extract(model, tok, STORIES, skip_tokens=3, batch_tokens=1, checkpoint=file)
    got = es.extract(model, tok, STORIES, neutral=NEUTRAL, batch_tokens=1, checkpoint=file)
    assert not file.exists()
    for layer in expected.layers:
        assert torch.equal(got.directions[layer], expected.directions[layer])
    assert got.provenance == expected.provenance


def test_batches():
    texts = [Text(tuple(range(n)), 0) for n in (3, 9, 1, 5)]
    found = batches(texts, 10)
    assert [[len(t.ids) for t in batch.texts] for batch in found] == [[9], [5, 3], [1]]
    assert counted_from(200, 50) == 50
    assert counted_from(20, 50) == 10
    assert counted_from(1, 50) == 0


@pytest.mark.parametrize(
    ("stories", "arguments", "message"),
    [
        ([("calm", "a b")], {}, "at least two labels"),
        ([("calm", ""), *STORIES], {}, "text 0 has no token"),
        (STORIES, {"denoise": 1.0}, r"denoise must lie in \[0, 1\)"),
        (STORIES, {"skip_tokens": -1}, "skip_tokens"),
        (STORIES, {"method": "magic"}, "method must be one of"),
        (STORIES, {"layers": [9]}, "layer 9 is outside the model"),
    ],
)
def test_bad_values(tiny_llama, stories, arguments, message):
    with pytest.raises(ValueError, match=message):
        es.extract(*tiny_llama, stories, **arguments)


def test_bad_types(tiny_llama):
    with pytest.raises(TypeError, match="story 1 must be a \\(label, text\\) pair"):
        es.extract(*tiny_llama, [("calm", "a"), 3])
    with pytest.raises(TypeError, match="pair of strings, got str, int"):
        es.extract(*tiny_llama, [("calm", 3)])
