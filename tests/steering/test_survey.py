"""The survey of architectures: a sample of each verdict; the whole of it is slow."""

from pathlib import Path

import pytest

from emosteer.survey import KINDS, Row, architectures, read, survey, write
from emosteer.survey.trial import tried

TABLE = Path(__file__).parents[2] / "bench" / "results" / "architectures.csv"


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2"])
def test_right_ones(model_type):
    row = tried("causal", model_type)
    assert row.verdict == "right", row
    assert row.depth == 3
    assert (row.fused > 0) == (model_type != "gpt2")


def test_refused_and_not_built_say_why():
    row = tried("encoder–decoder", "t5")
    assert row.verdict == "refused"
    assert "encoder–decoder" in row.reason
    assert tried("causal", "no such type").verdict == "not built"


def test_a_model_that_takes_too_long_is_left(monkeypatch):
    (row,) = survey([("causal", "llama")], seconds=0.01)
    assert row.verdict == "too slow"


def test_the_page_is_made_from_the_table(tmp_path):
    rows = [
        Row("causal", "llama", "right", "model.layers", 3, 2, "1e-06"),
        Row("causal", "x", "refused", reason="a|b"),
    ]
    write(rows, tmp_path / "a.csv", tmp_path / "a.md")
    assert read(tmp_path / "a.csv") == rows
    text = (tmp_path / "a.md").read_text()
    assert "1 right, 1 refused" in text
    assert "| llama | right | `model.layers` | 2 of 3 | 1e-06 |  |" in text


def test_the_committed_table_has_no_wrong_one():
    """What is wrong must be mended or refused before the table is committed."""
    rows = read(TABLE)
    assert {row.kind for row in rows} <= set(KINDS)
    assert [row for row in rows if row.verdict == "wrong"] == []
    assert sum(row.verdict == "right" for row in rows) >= 100


@pytest.mark.full
@pytest.mark.slow
def test_every_architecture_is_right_or_says_why():
    wrong = [row for row in survey(architectures()) if row.verdict == "wrong"]
    assert wrong == []
