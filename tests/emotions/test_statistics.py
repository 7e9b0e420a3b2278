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


def test_elo_recovers_what_choices_were_drawn_from():
    true = torch.tensor([800.0, 950.0, 1000.0, 1050.0, 1200.0], dtype=torch.float64)
    p = 1 / (1 + 10 ** ((true[None] - true[:, None]) / 400))
    p.fill_diagonal_(0)
    torch.testing.assert_close(elo(p * 1000, prior=1e-9), true, rtol=0, atol=0.01)
    always = torch.tensor([[0.0, 5, 5], [0, 0, 5], [0, 0, 0]])
    found = elo(always)
    assert bool((found.diff() < 0).all())
    assert float(found.abs().max()) < 3000
    torch.testing.assert_close(found.mean(), torch.tensor(1000.0, dtype=torch.float64))
