"""Directions: each from streamed moments, against scikit-learn or numpy on the whole matrix."""

import sys

import numpy as np
import pytest
import torch

from emosteer import directions
from emosteer.ops import Moments

GROUPS, DIM = 4, 12
NEAR = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def rows():
    """`(x [N, D] float32, group [N])`: groups of different sizes, correlated columns, one far from zero."""
    generator = torch.Generator().manual_seed(1)
    group = torch.randint(0, GROUPS, (300,), generator=generator).to(torch.int32)
    group[:7] = 3
    mix = torch.randn(DIM, DIM, generator=generator)
    centre = torch.randn(GROUPS, DIM, generator=generator)
    x = torch.randn(300, DIM, generator=generator) @ mix + 2 * centre[group.long()]
    x[:, 3] += 40
    return x, group


@pytest.fixture(scope="module")
def background():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(200, DIM, generator=generator) * torch.linspace(0.2, 3, DIM) + 1


def moments_of(x, group=None, parts=5):
    """Streamed in parts."""
    moments = Moments(1 if group is None else GROUPS, x.shape[1])
    for k, part in enumerate(x.chunk(parts)):
        moments.update(part, None if group is None else group.chunk(parts)[k].contiguous())
    return moments


def same_line(a, b):
    """Whether two vectors are parallel, whatever their sign and length."""
    return abs(float(a @ b / (a.norm() * b.norm()))) == pytest.approx(1, abs=1e-6)


def means_by_hand(x, group):
    return np.stack([x.double().numpy()[group.numpy() == c].mean(0) for c in range(GROUPS)])


def test_mean_difference(rows):
    x, group = rows
    means = means_by_hand(x, group)
    found = directions.mean_difference(moments_of(x, group).mean())
    np.testing.assert_allclose(found.vectors, means - means.mean(0), rtol=1e-5, atol=1e-5)
    assert found.components == 0


@pytest.mark.parametrize("denoise", [0.3, 0.5, 0.95])
def test_neutral_components_are_removed(rows, background, denoise):
    from sklearn.decomposition import PCA

    x, group = rows
    pca = PCA(n_components=denoise, svd_solver="full").fit(background.double().numpy())
    plain = means_by_hand(x, group)
    plain = plain - plain.mean(0)
    expected = plain - plain @ pca.components_.T @ pca.components_
    found = directions.mean_difference(
        moments_of(x, group).mean(), moments_of(background).covariance(), denoise
    )
    assert found.components == pca.n_components_
    np.testing.assert_allclose(found.vectors, expected, **NEAR)


@pytest.mark.parametrize("shrinkage", [0.0, 0.1, 1.0])
def test_lda(rows, shrinkage):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, group = rows
    moments = moments_of(x, group)
    plain = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(
        x.double().numpy(), group.numpy()
    )
    found = directions.lda(moments.mean(), moments.covariance("within", correction=0.0), shrinkage=shrinkage)
    np.testing.assert_allclose(found.vectors, plain.coef_ - plain.coef_.mean(0), rtol=1e-3, atol=1e-4)


def test_pca_of_differences(rows):
    """repeng's two: PCA of x⁺ − x⁻, and PCA of both about their midpoint."""
    from sklearn.decomposition import PCA

    x, _ = rows
    plus, minus = x[0::2], x[1::2] + torch.linspace(-1, 1, DIM)
    differences = (plus - minus).double()
    moments = moments_of(differences.float())
    diff = directions.pca_of_differences(moments.total_mean(), moments.covariance(), len(differences))
    middle = (plus + minus) / 2
    center = directions.pca_of_differences(
        moments.total_mean(), moments.covariance(), len(differences), center=False
    )
    plain_diff = PCA(1).fit(differences.numpy()).components_[0]
    plain_center = PCA(1).fit(torch.cat([plus - middle, minus - middle]).double().numpy()).components_[0]
    assert same_line(diff, torch.from_numpy(plain_diff))
    assert same_line(center, torch.from_numpy(plain_center))
    assert not same_line(diff, center)
    for found in (diff, center):
        assert float(found @ differences.mean(0)) >= 0


def test_contrastive_pca(rows, background):
    x, _ = rows
    alpha = 0.7
    plain = np.cov(x.double().numpy().T) - alpha * np.cov(background.double().numpy().T)
    values, vectors = np.linalg.eigh(plain)
    found = directions.contrastive_pca(
        moments_of(x).covariance(), moments_of(background).covariance(), alpha, k=3
    )
    assert found.shape == (3, DIM)
    for j in range(3):
        assert same_line(found[j], torch.from_numpy(vectors[:, -1 - j]))
    assert values[-1] > values[-2] > values[-3]
    torch.testing.assert_close(
        directions.contrastive_pca(moments_of(x).covariance(), moments_of(background).covariance(), alpha),
        found[:1],
    )
    for bad, message in (
        ((-1.0, 1), "alpha must not be negative"),
        ((1.0, DIM + 1), "k must lie between"),
        ((1.0, 0), "k must lie between"),
    ):
        with pytest.raises(ValueError, match=message):
            directions.contrastive_pca(torch.eye(DIM), torch.eye(DIM), *bad)


def test_leace(rows):
    """The closed form of the paper on the whole matrix; no linear probe finds the groups afterwards."""
    import scipy.linalg
    from sklearn.linear_model import LogisticRegression

    x, group = rows
    moments = moments_of(x, group)
    eraser = directions.leace(moments.count, moments.mean(), moments.covariance())

    wide, z = x.double().numpy(), np.eye(GROUPS)[group.numpy()]
    centred, onehot = wide - wide.mean(0), z - z.mean(0)
    covariance, cross = centred.T @ centred / len(x), centred.T @ onehot / len(x)
    whiten = scipy.linalg.inv(scipy.linalg.sqrtm(covariance).real)
    column = scipy.linalg.orth(whiten @ cross, rcond=1e-8)
    plain = scipy.linalg.inv(whiten) @ column @ column.T @ whiten
    np.testing.assert_allclose(eraser.projection, plain, rtol=1e-3, atol=1e-4)

    erased = eraser(x).double().numpy()
    np.testing.assert_allclose((erased - erased.mean(0)).T @ onehot / len(x), 0, atol=1e-4)
    share = np.bincount(group.numpy()).max() / len(x)
    probe = LogisticRegression(C=1e4, max_iter=5000)
    assert probe.fit(wide, group.numpy()).score(wide, group.numpy()) > share + 0.2
    assert probe.fit(erased, group.numpy()).score(erased, group.numpy()) == pytest.approx(share, abs=0.03)
    assert eraser(x.half()).dtype == torch.float16


def test_leace_where_a_column_never_varies(rows):
    x, group = rows
    x = torch.cat([x, torch.full((len(x), 1), 5.0)], 1)
    moments = moments_of(x, group)
    eraser = directions.leace(moments.count, moments.mean(), moments.covariance())
    assert bool(torch.isfinite(eraser.projection).all())
    torch.testing.assert_close(eraser(x)[:, -1], x[:, -1])


def test_logistic_probe(rows):
    """One label against the rest; the gradient of the penalised loss vanishes at the weights found."""
    x, group = rows
    x = (x - x.mean(0)) / x.std(0)
    found = directions.logistic_probe(x, group, c=0.5)
    assert found.shape == (GROUPS, DIM)
    from sklearn.linear_model import LogisticRegression

    for c in range(GROUPS):
        y = (group == c).numpy()
        plain = LogisticRegression(C=0.5, max_iter=1000).fit(x.double().numpy(), y)
        np.testing.assert_allclose(found[c], plain.coef_[0], rtol=1e-3, atol=1e-4)
        p = plain.predict_proba(x.double().numpy())[:, 1]
        slope = found[c].numpy() - 0.5 * ((y - p)[:, None] * x.double().numpy()).sum(0)
        assert np.abs(slope).max() < 0.02
    two = directions.logistic_probe(x[group < 2], group[group < 2])
    torch.testing.assert_close(two[0], -two[1])


def test_half_of_the_neutral_variance_unless_said(rows, background):
    means, neutral = moments_of(*rows).mean(), moments_of(background).covariance()
    assert torch.equal(
        directions.mean_difference(means, neutral).vectors,
        directions.mean_difference(means, neutral, 0.5).vectors,
    )
    assert directions.mean_difference(means, neutral, 0).components == 0


def test_no_variance_has_no_components():
    assert directions.principal_components(torch.zeros(DIM, DIM), 0.5).shape == (DIM, 0)


def test_without_scikit_learn(rows, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r"pip install .emosteer\[science\]"):
        directions.logistic_probe(*rows)


def test_bad_values(rows):
    x, group = rows
    with pytest.raises(ValueError, match="at least two labels, got 1;"):
        directions.mean_difference(x[:1].double())
    with pytest.raises(ValueError, match=r"means of groups \[1\] are not finite"):
        directions.mean_difference(torch.stack([x[0], x[1] * torch.nan, x[2]]).double())
    for wrong in (2, -0.1):
        with pytest.raises(ValueError, match=rf"shrinkage must lie in \[0, 1\], got {wrong}"):
            directions.lda(moments_of(x, group).mean(), torch.eye(DIM).double(), shrinkage=wrong)
