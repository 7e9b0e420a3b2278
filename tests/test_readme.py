"""The README's example runs as it stands; its links and pictures are there."""

import re
from pathlib import Path

import pytest

import emosteer as es
from tests.stories import few_stories

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.model
def test_the_example(smollm2, tmp_path, monkeypatch):
    model, tok = smollm2
    words = ("joyful", "calm", "desperate", "angry", "sad")
    few = es.extract(model, tok, few_stories(words), layers="middle", progress=False)
    monkeypatch.setattr(es.emotions, "bank", lambda *_: few)
    monkeypatch.setattr(es, "load", lambda _: smollm2, raising=False)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    found = {}
    exec(compile(code, "README.md", "exec"), found)
    assert found["out"].shape[0] == 3
    assert (tmp_path / "reading.html").stat().st_size > 1000
    assert str(found["steering"].programs[1]) == "angry +0.05"
    assert found["watch"].turns


def test_links():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(targets) >= 5
    for target in targets:
        assert (ROOT / target).exists(), target


def test_figures_are_in_place():
    assert "__" not in re.sub(r"`[^`]*`|```.*?```", "", README, flags=re.S)
