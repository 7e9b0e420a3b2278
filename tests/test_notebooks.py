"""The notebooks run from top to bottom, and hold no outputs of somebody's machine."""

import json
from pathlib import Path

import pytest

from .patience import PATIENCE

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
# All stories of ten emotions, and a few of them.
WHOLE, FEW = "es.emotions.corpus().only(words)", "__import__('tests.stories').stories.few_stories(words)"


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["emotions_in_ten_minutes", "your_own_concept"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 4
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.model
@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, smollm2, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.reads(path.read_text(encoding="utf-8").replace(WHOLE, FEW), as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the notebook's process
    nbclient.NotebookClient(book, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(output.get("text", "") for cell in book.cells for output in cell.get("outputs", []))
    expected = {
        "emotions_in_ten_minutes": ("standard deviations", "coherent", "alarms without a cap"),
        "your_own_concept": ("of 4, random", "polite +0.1"),
    }
    for words in expected[path.stem]:
        assert words in said, said
    assert any("image/png" in str(output) for cell in book.cells for output in cell.get("outputs", [])) == (
        path.stem == "emotions_in_ten_minutes"
    )
