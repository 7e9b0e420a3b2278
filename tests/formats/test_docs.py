"""The programs in the two documents run as they stand, one block after the other."""

import re
from pathlib import Path

import pytest

DOCUMENTED = (
    "emosteer", "npz", "gguf", "svec", "easysteer", "steering_vectors", "lm_eval", "hotwire", "steering_lite", "saklas",
)  # fmt: skip
DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["formats.md", "integrating.md"])
def test_programs_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), flags=re.S)
    assert len(blocks) > 1
    known: dict = {}
    for block in blocks:
        exec(compile(block, name, "exec"), known)


def test_every_format_is_in_the_table():
    from emosteer import formats

    text = (DOCS / "formats.md").read_text()
    assert re.findall(r"^\| `(\w+)` \| `\.", text, flags=re.M) == list(DOCUMENTED)
    assert set(DOCUMENTED) == set(formats.MODULES)
