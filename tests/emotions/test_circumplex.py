"""The circumplex: axes found by correlation, ratings of the user's own, a plot that can be read."""

import math

import pytest
import torch

import emosteer as es
from emosteer.emotions.circumplex import components, correlation
from emosteer.emotions.ratings import read_ratings, russell, vader


def planted(seed=0, noise=0.05, dim=24):
    """A bank whose directions are a plane of Russell's valence and arousal, turned at random, and noise."""
    generator = torch.Generator().manual_seed(seed)
    words = list(russell())
    plane = torch.tensor([russell()[w] for w in words]) * torch.tensor([2.0, 1.0])
    basis = torch.linalg.qr(torch.randn(dim, 2, generator=generator))[0]
    rows = plane @ basis.T + noise * torch.randn(len(words), dim, generator=generator)
    return es.Bank(words, {3: rows, 7: torch.randn(len(words), dim, generator=generator)})


def test_finds_a_planted_plane():
    found = es.circumplex(planted(), 3, ratings=russell())
    assert found.valence_r > 0.98
    assert found.arousal_r > 0.95
    assert (found.valence_component, found.arousal_component) == (1, 2)
    assert found.rated == (27, 27)
    happy, sad = (found.names.index(w) for w in ("happy", "sad"))
    assert found.coordinates[happy, 0] > found.coordinates[sad, 0]
    assert "valence r=0.9" in repr(found) or "valence r=1.0" in repr(found)


def test_the_default_layer_and_noise():
    found = es.circumplex(planted(), ratings=russell())
    assert found.layer == 7  # nearer to two thirds of 8 blocks than 3 is
    assert found.valence_r < 0.8  # which holds noise


def test_components_are_numpys():
    import numpy as np

    bank = planted()
    vectors = (bank.directions[3] * bank.magnitude[3][:, None]).double().numpy()
    u, s, _ = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    scores, explained = components(bank, 3)
    np.testing.assert_allclose(np.abs(scores), np.abs((u * s)[:, :3]), atol=1e-6)
    np.testing.assert_allclose(explained, s**2 / (s**2).sum(), atol=1e-9)


def test_correlation():
    a = torch.tensor([1.0, 2.0, 4.0, torch.nan])
    b = torch.tensor([2.0, 1.0, 5.0, 3.0])
    import numpy as np

    assert correlation(a, b) == pytest.approx(np.corrcoef([1, 2, 4], [2, 1, 5])[0, 1])
    assert correlation(torch.ones(3), torch.rand(3)) == 0.0


def test_human_ratings():
    angles = russell()
    assert len(angles) == 27
    for valence, arousal in angles.values():
        assert math.hypot(valence, arousal) == pytest.approx(1)
    assert len(vader(es.emotions.WORDS)) == 139


@pytest.mark.parametrize(
    "content",
    [
        "word,valence,arousal\nhappy,0.9,0.6\nSad,0.1,0.3\n",
        "Word\tValence\tArousal\tDominance\nhappy\t0.9\t0.6\t0.5\nsad\t0.1\t0.3\t0.2\n",
        "term\tvalence\tarousal\tdominance\r\nhappy\t0.9\t0.6\t0.5\r\nsad\t0.1\t0.3\t0.2\r\n",
        "happy\t0.9\t0.6\t0.5\nsad\t0.1\t0.3\t0.2\n",
        "\ufeffarousal,valence,word\n0.6,0.9,happy\n0.3,0.1,sad\n",
    ],
    ids=["own", "NRC-VAD", "NRC-VAD 2", "NRC-VAD without header", "other order"],
)
def test_norms_of_ones_own(tmp_path, content):
    path = tmp_path / "norms.txt"
    path.write_bytes(content.encode("utf-8"))
    assert read_ratings(path) == {"happy": (0.9, 0.6), "sad": (0.1, 0.3)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("word,valence,arousal\nhappy,high,0.6\n", "line 2: expected a word"),
        ("word,valence,arousal\n", "rates no word"),
    ],
)
def test_bad_norms(tmp_path, content, message):
    path = tmp_path / "norms.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_ratings(path)


def test_too_few_ratings():
    bank = es.Bank(["a", "b", "c", "d", "e"], {0: torch.randn(5, 8)})
    with pytest.raises(ValueError, match="only 0 of the bank's 5 concepts have a rating of valence"):
        es.circumplex(bank)
    with pytest.raises(ValueError, match="layer 4 is not in the bank"):
        es.circumplex(bank, 4)


def test_the_plot_names_concepts_without_overlap(tmp_path):
    from matplotlib.text import Annotation

    figure = es.circumplex(planted(), 3, ratings=russell()).plot(tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000
    texts = [t for t in figure.axes[0].texts if isinstance(t, Annotation)]
    assert len(texts) >= 15
    figure.canvas.draw()
    boxes = [t.get_window_extent() for t in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
