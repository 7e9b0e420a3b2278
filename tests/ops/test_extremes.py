"""`project_extremes_` against the scores of `project` in float64."""

import pytest
import torch

from emosteer import ops

from .cases import DTYPES, rows, unit


def folded(x, directions, row, programs, center=None, cosine=False):
    wide = x.double().reshape(len(row), -1) - (0 if center is None else center.double())
    scores = wide @ directions.double().T
    if cosine:
        scores /= wide.norm(dim=1, keepdim=True)
    maximum = torch.stack([scores[row == r].amax(0, keepdim=False) for r in range(programs)])
    return maximum, torch.stack([scores[row == r].sum(0) for r in range(programs)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(("n", "dense"), [(12, True), (12, False), (200, True), (200, False)])
def test_two_updates(backend, dtype, cosine, n, dense):
    """Few rows and many, tiles of one row and of several, tokens of no row."""
    x, directions, center = rows(2 * n, 70, dtype), unit(19, 70), rows(1, 70, seed=4)[0]
    token_row = (torch.arange(n) * 7 % 4).int()
    maximum, total = torch.full((4, 19), -torch.inf), torch.zeros(4, 19)
    for part in (x[:n], x[n:].view(4, -1, 70)):
        given = None if dense else token_row
        ops.project_extremes_(maximum, total, part, directions, given, center=center, cosine=cosine)
    row = torch.arange(n) // (n // 4) if dense else token_row
    want = folded(x, directions, torch.cat([row, row]), 4, center, cosine)
    torch.testing.assert_close(maximum.double(), want[0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(total.double(), want[1], rtol=1e-5, atol=1e-3)


def test_tokens_of_no_row_and_broken_ones(backend):
    x, directions = rows(6, 33), unit(3, 33)
    x[1] = float("nan")
    maximum, total = torch.full((2, 3), -torch.inf), torch.zeros(2, 3)
    token_row = torch.tensor([0, 1, 1, -1, 0, -1], dtype=torch.int32)
    ops.project_extremes_(maximum, total, x, directions, token_row)
    want = folded(x[[0, 2, 4]], directions, torch.tensor([0, 1, 0]), 2)
    torch.testing.assert_close(maximum.double(), want[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total[0].double(), want[1][0], rtol=1e-5, atol=1e-5)
    assert total[1].isnan().all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(maximum=torch.zeros(2, 4)), ValueError, r"maximum must be \[R, 3\]"),
        (dict(total=torch.zeros(2, 3).double()), TypeError, "total must be float32, got float64"),
        (dict(total=torch.zeros(1, 3)), ValueError, "maximum has 2 rows, total has 1"),
        (dict(x=rows(5, 33)), ValueError, "do not divide evenly over the 2 rows of maximum"),
        (dict(maximum=torch.zeros(3, 2).T), ValueError, "maximum must be contiguous"),
    ],
)
def test_errors(change, error, message):
    given = dict(maximum=torch.zeros(2, 3), total=torch.zeros(2, 3), x=rows(6, 33), directions=unit(3, 33))
    with pytest.raises(error, match=message):
        ops.project_extremes_(**(given | change))
