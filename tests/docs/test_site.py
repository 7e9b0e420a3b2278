"""The site: figures from the committed files, and pages that ask nobody else for anything."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def figures():
    spec = importlib.util.spec_from_file_location("figures", ROOT / "docs" / "figures.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_pictures_are_the_same_every_time(figures):
    for name in figures.PICTURES.values():
        found = figures.read(name)
        drawn = figures.bars(found)
        assert drawn == figures.bars(found)
        assert drawn.count(b"<path") > 10


def test_a_table_says_what_made_it(figures):
    found = figures.read("steering_float32")
    made = figures.ratios(found)
    assert made.startswith("`python bench/steering.py")
    (line,) = [line for line in made.splitlines() if line.startswith("| decode B=1 | plain hook")]
    row = next(r for r in found.lines if r["case"] == "decode B=1" and r["side"] == "plain hook")
    assert f"{float(row['ratio_median']):.2f}" in line


def test_what_is_predicted(figures, tmp_path, monkeypatch):
    assert figures.read("static_shares").predicted
    assert not figures.read("ops").predicted
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    (tmp_path / "bare.csv").write_text("case,side\na,b\n")
    with pytest.raises(ValueError, match="does not say in a first line"):
        figures.read("bare")


def test_a_file_without_what_is_asked(figures):
    with pytest.raises(ValueError, match="no ratio against 'nobody'"):
        figures.ratios(figures.read("ops"), "nobody")
    with pytest.raises(ValueError, match="nothing measured against 'nobody'"):
        figures.bars(figures.read("ops"), "nobody")


@pytest.mark.full
def test_the_site(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is missing: make docs has it")
    made = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 35
    fetched = re.compile(r'<(?:script|img|iframe|source|link)\b[^>]*\b(?:src|href)="?https?:')
    for page in pages:
        assert not fetched.search(page.read_text(encoding="utf-8")), page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet
    benchmarks = (tmp_path / "site" / "benchmarks.html").read_text(encoding="utf-8")
    measured, predicted = benchmarks.split('id="predicted-for-gpus"')
    assert "No GPU has run this" in predicted
    assert "No GPU has run this" not in measured.split("<article")[1]
    assert "steer_rms_norm_" in (tmp_path / "site" / "reference" / "ops.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "files" / "bench" / "results" / "static.md.txt").is_file()
