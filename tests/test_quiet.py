"""What a user reads where nothing is wrong holds no warning of another library."""

import os
import re
import subprocess
import sys

import pytest

NOISE = re.compile(r"warn|deprecat|failed to load|torchao|^[WE]\d{4} ", re.IGNORECASE | re.MULTILINE)
FIRST_USE = """
import emosteer as es
es.load(FOLDER)
metrics = [es.metrics.text(), es.metrics.choices([" good", " rather bad"])]
asked = dict(prompts=["One", "Another one"], programs=[es.add("calm", 0.1)], metrics=metrics)
sweep = es.Sweep(model=FOLDER, bank=es.Bank.load(BANK), **asked)
assert not sweep.run(FOLDER + "/run", progress=False).status().failed
"""
COMMANDS = "from emosteer.cli import main; main()"


def said(*arguments, **environment):
    """What a new process writes, both streams together."""
    done = subprocess.run(
        [sys.executable, "-W", "default", *arguments],
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_first_use(tiny_llama, tmp_path):
    """The first import of transformers' models, which imports torchao where it is installed; a sweep, with caches."""
    from tests.steering.conftest import random_bank

    pytest.importorskip("torchao")
    model, tok = tiny_llama
    model.save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    random_bank(model).save(tmp_path / "bank.safetensors")
    code = FIRST_USE.replace("FOLDER", repr(str(tmp_path)))
    text = said("-c", code.replace("BANK", repr(str(tmp_path / "bank.safetensors"))))
    assert not NOISE.search(text), text


@pytest.mark.full
@pytest.mark.model
def test_commands(smollm2, tmp_path):
    """On the built-in model, from a bank of the user's own; and what needs no model."""
    from tests.steering.conftest import random_bank

    bank = tmp_path / "bank.safetensors"
    random_bank(smollm2[0]).save(bank)
    text = said("-c", COMMANDS, "steer", "It was", "--add", "calm=0.1", "--tokens", "3", "--bank", str(bank))
    assert "calm" in text
    assert not NOISE.search(text), text
    assert not NOISE.search(said("-c", COMMANDS, "--help"))


def test_warnings_come_back():
    """Only what is said while a model is loaded is dropped."""
    import logging

    from emosteer.models.quiet import LOGGERS, quiet_imports

    before = [logging.getLogger(name).level for name in LOGGERS]
    with quiet_imports():
        assert not logging.getLogger(LOGGERS[0]).isEnabledFor(logging.WARNING)
        assert logging.getLogger(LOGGERS[0]).isEnabledFor(logging.ERROR)
    assert [logging.getLogger(name).level for name in LOGGERS] == before


def test_source_compiled_for_the_first_time():
    """A wheel's stray backslash: a DeprecationWarning up to Python 3.11, a SyntaxWarning from 3.12 on."""
    import warnings

    from emosteer.models.quiet import quiet_imports

    stray = "'\\.'"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((DeprecationWarning, SyntaxWarning, SyntaxError)):
            compile(stray, "<a wheel>", "eval")
        with quiet_imports():
            compile(stray, "<a wheel>", "eval")
            with pytest.raises(UserWarning):
                warnings.warn("one's own", UserWarning, stacklevel=1)
