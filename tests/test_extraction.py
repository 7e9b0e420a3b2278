"""Extraction: the recipe computed by hand, batches that do not matter, interruptions that lose nothing."""

from itertools import accumulate, combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import emosteer as es
import emosteer.extraction
from emosteer.models.batching import PASS_CPU, Text, batches, counted_from

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
    from emosteer.extraction.counting import Counting

    model, tok = tiny_llama
    file = tmp_path / "state.safetensors"
    expected = es.extract(model, tok, STORIES, neutral=NEUTRAL, batch_tokens=1)
    count, seen = Counting._count_batch, []

    def break_off(self, batch, kind):
        if len(seen) == 4:
            raise KeyboardInterrupt
        seen.append(batch)
        count(self, batch, kind)

    monkeypatch.setattr(Counting, "_count_batch", break_off)
    with pytest.raises(KeyboardInterrupt):
        es.extract(model, tok, STORIES, neutral=NEUTRAL, batch_tokens=1, checkpoint=file)
    monkeypatch.setattr(Counting, "_count_batch", count)
    with pytest.raises(ValueError, match="made from other texts"):
        es.extract(model, tok, STORIES[::-1], neutral=NEUTRAL, batch_tokens=1, checkpoint=file)
    with pytest.raises(ValueError, match="skip_tokens differ"):
        es.extract(model, tok, STORIES, skip_tokens=3, batch_tokens=1, checkpoint=file)
    got = es.extract(model, tok, STORIES, neutral=NEUTRAL, batch_tokens=1, checkpoint=file)
    assert not file.exists()
    for layer in expected.layers:
        assert torch.equal(got.directions[layer], expected.directions[layer])
    assert got.provenance == expected.provenance


def test_several_methods_from_one_pass(tiny_llama):
    model, tok = tiny_llama
    collected = es.collect(model, tok, STORIES, neutral=NEUTRAL, skip_tokens=10)
    for method in ("mean_difference", "lda"):
        one = es.extract(model, tok, STORIES, neutral=NEUTRAL, skip_tokens=10, method=method)
        bank = collected.bank(method)
        assert bank.names == one.names
        torch.testing.assert_close(bank.directions[2], one.directions[2])
        assert bank.provenance["method"] == method

    def tokens(text):
        ids = tok(text, return_tensors="pt").input_ids
        with streams(model) as seen, torch.no_grad():
            model(input_ids=ids)
        return seen[0][2][0][min(10, ids.shape[1] // 2) :].double()

    neutral = torch.cat([tokens(text) for text in NEUTRAL])
    first = collected.contrastive_pca(2, alpha=0.0)[0]
    assert collected.contrastive_pca(2, alpha=1.0, k=3).shape == (3, 32)
    # with nothing contrasted it is plain PCA of the tokens counted; a heavy contrast avoids the neutral variance
    heavy = collected.contrastive_pca(2, alpha=50.0)[0]
    spread = torch.cov(neutral.T)
    assert float(heavy @ spread @ heavy) < 0.1 * float(first @ spread @ first)

    eraser = collected.eraser(2)
    erased = torch.stack([eraser(tokens(text)).mean(0) for _, text in STORIES])
    centre = erased.mean(0)
    for k in range(0, len(STORIES), 2):  # after erasure every label has the same mean
        torch.testing.assert_close(erased[k : k + 2].mean(0), centre, rtol=1e-4, atol=1e-3)


def test_labels_put_together(tiny_llama):
    """One label a text, regrouped, is the bank of the groups."""
    model, tok = tiny_llama
    own = [(f"{label} {k}", text) for k, (label, text) in enumerate(STORIES)]
    collected = es.collect(model, tok, own, neutral=NEUTRAL, skip_tokens=10)
    groups = {name: name.split()[0] for name, _ in own}
    for method in ("mean_difference", "lda"):
        bank = collected.regrouped(groups).bank(method)
        plain = es.extract(model, tok, STORIES, neutral=NEUTRAL, skip_tokens=10, method=method)
        assert bank.names == plain.names
        torch.testing.assert_close(bank.directions[2], plain.directions[2], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(bank.projection_std[2], plain.projection_std[2], rtol=1e-3, atol=1e-4)
    some = {name: label for name, label in groups.items() if label != "proud"}
    with pytest.raises(ValueError, match="2 labels are left out, but the covariance"):
        collected.regrouped(some)
    thin = es.collect(model, tok, own, skip_tokens=10, within=False).regrouped(some)
    pair = es.extract(model, tok, STORIES[:4], skip_tokens=10)
    torch.testing.assert_close(thin.bank().directions[1], pair.directions[1], rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="were not counted"):
        collected.regrouped({"furious": "x"})


def test_what_was_not_collected(tiny_llama):
    collected = es.collect(*tiny_llama, STORIES, within=False)
    with pytest.raises(ValueError, match="collect them with within=True"):
        collected.bank("lda")
    with pytest.raises(ValueError, match="no neutral texts|neutral texts to contrast"):
        collected.contrastive_pca(1)
    with pytest.raises(ValueError, match="layer 9 was not counted"):
        collected.eraser(9)


def test_means_of_texts(tiny_llama):
    model, tok = tiny_llama
    texts = [text for _, text in STORIES]
    rows = es.extraction.text_means(model, tok, texts, layers=[1, 3], skip_tokens=10, batch_tokens=64)
    for layer in (1, 3):
        assert rows[layer].shape == (len(texts), 32)
        for row, text in zip(rows[layer], texts):
            ids = tok(text, return_tensors="pt").input_ids
            with streams(model) as seen, torch.no_grad():
                model(input_ids=ids)
            plain = seen[0][layer][0][min(10, ids.shape[1] // 2) :].mean(0)
            torch.testing.assert_close(row, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("read", ["last", "mean"])
@pytest.mark.parametrize("method", ["pca_diff", "pca_center", "mean_difference"])
def test_pairs(tiny_llama, method, read):
    """Against PCA of the differences of hidden states, run text by text."""
    from sklearn.decomposition import PCA

    model, tok = tiny_llama
    pairs = [
        (f"{k} yes, {a}", f"{k} no, {b}") for k, ((_, a), (_, b)) in enumerate(zip(STORIES, STORIES[::-1]))
    ]
    bank = es.extract_pairs(model, tok, pairs, "yes", method=method, read=read, layers=[2], batch_tokens=50)

    def end(text):
        out = model(**tok(text, return_tensors="pt"), output_hidden_states=True).hidden_states[3][0]
        return (out[-1] if read == "last" else out.mean(0)).double()

    with torch.no_grad():
        plus, minus = (torch.stack([end(pair[k]) for pair in pairs]) for k in (0, 1))
    difference = plus - minus
    if method == "mean_difference":
        plain = difference.mean(0)
    else:
        train = difference if method == "pca_diff" else torch.cat([difference, -difference]) / 2
        plain = torch.from_numpy(PCA(1).fit(train.numpy()).components_[0])
        plain = plain if float(plain @ difference.mean(0)) >= 0 else -plain
    torch.testing.assert_close(bank.directions[2][0].double(), plain / plain.norm(), rtol=1e-3, atol=1e-3)
    assert bank.scale[2] == pytest.approx(float(torch.cat([plus, minus]).norm(dim=1).mean()), rel=1e-4)


def test_bad_pairs(tiny_llama):
    with pytest.raises(ValueError, match="at least two pairs, got 1"):
        es.extract_pairs(*tiny_llama, [("a", "b")], "x")
    with pytest.raises(TypeError, match=r"pair 1 must be \(positive, negative\)"):
        es.extract_pairs(*tiny_llama, [("a", "b"), 3], "x")
    with pytest.raises(ValueError, match="method must be one of"):
        es.extract_pairs(*tiny_llama, [("a", "b")], "x", method="pca")
    with pytest.raises(ValueError, match="pair 1|text 1 has no token"):
        es.extract_pairs(*tiny_llama, [("a", "b"), ("", "b")], "x")


def test_batches():
    texts = [Text(tuple(range(n)), 0) for n in (3, 9, 1, 5)]
    assert [[len(t.ids) for t in batch.texts] for batch in batches(texts, 10)] == [[9], [5], [3, 1]]
    assert [list(batch.ids.shape) for batch in batches(texts, 100)] == [
        [4, 9]
    ]  # passes cost more than padding
    assert counted_from(200, 50) == 50
    assert counted_from(20, 50) == 10
    assert counted_from(1, 50) == 0


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=9), budget=st.sampled_from((10, 300, 700)))
def test_batches_are_the_cheapest(lengths, budget):
    """Against every way to cut, under the budget."""
    down = sorted(lengths, reverse=True)

    def cost(cuts):
        return sum((stop - start) * down[start] + PASS_CPU for start, stop in pairwise(cuts))

    def fits(cuts):
        return all(
            stop - start == 1 or (stop - start) * down[start] <= budget for start, stop in pairwise(cuts)
        )

    inner = range(1, len(down))
    every = [(0, *some, len(down)) for k in range(len(down)) for some in combinations(inner, k)]
    found = batches([Text(tuple(range(n)), 0) for n in lengths], budget)
    assert [len(t.ids) for batch in found for t in batch.texts] == down
    cuts = [0, *accumulate(len(batch.texts) for batch in found)]
    assert fits(cuts)
    assert cost(cuts) == min(cost(one) for one in every if fits(one))


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
    with pytest.raises(TypeError, match="a string and a string or a chat, got str, int"):
        es.extract(*tiny_llama, [("calm", 3)])
