"""Statistics of the studies, against scipy and by simulation."""

import pytest
import torch

from emosteer.emotions.validation.statistics import elo, interval, ranks, spearman, wilson


def test_spearman():
    import scipy.stats

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 6, (2, 40), generator=generator).double()
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [5, 5, 5]) == 0
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0, 2.5, 1]


@pytest.mark.parametrize(("k", "n"), [(0, 6), (3, 7), (12, 12), (50, 180)])
def test_wilson(k, n):
    import scipy.stats

    plain = scipy.stats.binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n) == pytest.approx((plain.low, plain.high), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_interval_covers_the_mean():
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(200, 30, generator=generator) + 2
    inside = [low < 2 < high for low, high in (interval(x, draws=400) for x in draws)]
    assert 0.85 < sum(inside) / len(inside) < 0.99
    assert interval([3.0]) == (3.0, 3.0)


@pytest.mark.parametrize("order", [0.0, -900.0, 250.0])
def test_elo_recovers_what_choices_were_drawn_from(order):
    true = torch.tensor([800.0, 950.0, 1000.0, 1050.0, 1200.0], dtype=torch.float64)
    first = 1 / (1 + 10 ** ((true[None] - true[:, None] - order) / 400))
    ratings, effect = elo(first, ridge=1e-12)
    torch.testing.assert_close(ratings, true, rtol=0, atol=0.01)
    assert effect == pytest.approx(order, abs=0.01)


def test_elo_is_a_logistic_regression():
    """Hard choices, with scikit-learn's penalty."""
    from sklearn.linear_model import LogisticRegression

    generator = torch.Generator().manual_seed(3)
    first = torch.randint(0, 2, (6, 6), generator=generator).double()
    i, j = (~torch.eye(6, dtype=torch.bool)).nonzero(as_tuple=True)
    design = torch.zeros(30, 7, dtype=torch.float64)
    design[torch.arange(30), i], design[torch.arange(30), j], design[:, 6] = 1, -1, 1
    fitted = LogisticRegression(C=1 / 0.1, fit_intercept=False, tol=1e-10, max_iter=5000)
    weights = fitted.fit(design.numpy(), first[i, j].numpy()).coef_[0] * 400 / 2.302585093
    ratings, effect = elo(first, ridge=0.1)
    torch.testing.assert_close(
        ratings, 1000 + torch.from_numpy(weights[:6] - weights[:6].mean()), rtol=0, atol=0.01
    )
    assert effect == pytest.approx(weights[6], abs=0.01)


def test_elo_of_one_who_always_wins():
    always = torch.triu(torch.ones(3, 3, dtype=torch.float64))
    found, _ = elo(always)
    assert bool((found.diff() < 0).all())
    assert float(found.abs().max()) < 5000
