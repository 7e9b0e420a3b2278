"""Every Python block of the documentation runs as it stands, every command is one that there is.

A page's blocks run one after the other in one namespace, in an empty folder that has `emotions.safetensors`. What a
page does not make itself is there before: a model, its tokenizer, a bank of a few emotions, inputs. The few are also
what `es.emotions` gives, so that a page that extracts all of them takes seconds.
"""

import copy
import functools
import importlib.util
import inspect
import os
import re
import shlex
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import emosteer as es
from tests.stories import few_stories

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
WORDS = ("joyful", "calm", "desperate", "angry", "sad", "excited", "bored", "afraid", "happy")

# What a block needs beside the package itself; without it the page waits for `make test-peers`.
ELSEWHERE = {"accelerate.md": "repeng", "harnesses.md": "inspect_ai"}
# Blocks that need a cluster, or vLLM, by a word in them, and the test that runs the like.
OF_A_CLUSTER = {
    '"ray", num_workers': "tests/sweep/test_ray.py",
    '"vllm", tensor_parallel_size': "tests/sweep/test_vllm.py",
    "from vllm import LLM": "tests/vllm/test_requests.py",
}
# Pages that have a compiler or `torch.export` trace the model: its first blocks do.
TRACED, DEPTH = ("compile.md", "recipes/export.md"), 4
# What is said to a reader, and what is run instead.
SHORTER = {"sweeps.md": ('"max_new_tokens": 30', '"max_new_tokens": 4')}
# Pages that every change runs; the others are left to the level `rest`.
QUICK = ("how.md", "formats.md", "integrating.md", "security.md")

TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def short():
    return Task([Sample("It was late and", target="a")], generate(max_tokens=3), includes())
"""


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), flags=re.S | re.M)


def levelled(page):
    marks = [pytest.mark.model] if page in QUICK else [pytest.mark.model, pytest.mark.full, pytest.mark.slow]
    return pytest.param(page, marks=marks)


@pytest.fixture(scope="module")
def few(smollm2, tmp_path_factory):
    """Extracted by one process of a run, for all."""
    folder = tmp_path_factory.getbasetemp()
    file = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "few.safetensors"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            es.extract(*smollm2, few_stories(WORDS), layers="all", progress=False).save(file)
    return es.Bank.load(file)


@pytest.fixture
def names(smollm2, few, tmp_path, monkeypatch):
    """What is there before a page's first block."""
    model, tok = smollm2
    corpus = few_stories(WORDS)
    monkeypatch.setattr(es, "load", lambda *_args, **_named: smollm2, raising=False)
    monkeypatch.setattr("emosteer.models.loading.load", lambda *_args, **_named: smollm2)
    monkeypatch.setattr(es.emotions, "bank", lambda *_args, **_named: few)
    monkeypatch.setattr(es.emotions, "corpus", lambda: corpus)
    monkeypatch.chdir(tmp_path)
    few.save("emotions.safetensors")
    Path("task.py").write_text(TASK)
    Path("prompts.txt").write_text("It was late\n")
    pairs = [
        ("Please close the door.", "Close the door."),
        ("Might you wait?", "Wait."),
        ("Kindly sit.", "Sit."),
    ]
    return {
        "es": es,
        "torch": torch,
        "model": model,
        "tok": tok,
        "tokenizer": tok,
        "bank": few,
        "inputs": tok("It was late and", return_tensors="pt"),
        "pairs": pairs,
        "texts": [one for pair in pairs for one in pair],
        "x": torch.randn(3, few.dim),
    }


@pytest.mark.parametrize("page", [levelled(page) for page in PAGES if python_blocks(page)])
def test_python(page, names, monkeypatch):
    if page == "compile.md":  # two programs; Inductor's minutes are those of tests/steering/compiled
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    if page in TRACED:
        names["model"], names["bank"] = _first_blocks(names["model"], names["bank"])
        monkeypatch.setattr(es, "load", lambda _: (names["model"], names["tok"]), raising=False)
        names["inputs"] = names["tok"](["It was late and"] * 2, return_tensors="pt")
    if page in ELSEWHERE:
        pytest.importorskip(ELSEWHERE[page], reason=f"{ELSEWHERE[page]} is missing: make test-peers has it")
        from_repeng = {"repeng": lambda: _dataset(names)}.get(ELSEWHERE[page], dict)
        names.update(from_repeng())
    try:
        for number, block in enumerate(python_blocks(page)):
            if page in SHORTER:
                block = block.replace(*SHORTER[page])
            code = compile(block, f"{page}, block {number}", "exec")
            if not any(word in block for word in OF_A_CLUSTER):
                exec(code, names)
    finally:
        if page == "accelerate.md":
            names["control"].unwrap()
            es.accelerate().undo()


def _first_blocks(model, bank):
    """A model of the first blocks, and the bank of these."""
    cut = copy.deepcopy(model)
    cut.model.layers = cut.model.layers[:DEPTH]
    cut.config.num_hidden_layers = DEPTH
    directions = {layer: bank.directions[layer] for layer in range(DEPTH)}
    return cut, es.Bank(bank.names, directions, scale={layer: bank.scale[layer] for layer in directions})


def _dataset(names):
    from repeng import DatasetEntry

    return {"dataset": [DatasetEntry(positive=a, negative=b) for a, b in names["pairs"]]}


def test_blocks_of_a_cluster():
    """They are there, and so are the tests that stand for them."""
    blocks = [block for page in PAGES for block in python_blocks(page)]
    for word, test in OF_A_CLUSTER.items():
        assert any(word in block for block in blocks), word
        assert (ROOT / test).exists(), test


def commands(text):
    """`(whether the page says that it runs here, command)` of each line of a shell in a Markdown text."""
    text = re.sub(r"^```(?:python|yaml)\n.*?^```", "", text, flags=re.S | re.M).replace("\\\n", " ")
    here = False
    for line in text.splitlines():
        if line.startswith("```"):
            here = line == "```sh" and not here
            continue
        found = re.match(
            r"(?:    )?((?:[A-Z_]+=\S+ )*)((?:emosteer|pip|make|pytest|python|inspect|torchrun|\.ci/run)\b.*)",
            line,
        )
        if found and (here or line.startswith("    ") or found[2].startswith("emosteer ")):
            yield here, found[2]


ALL = {
    path: list(commands(path.read_text(encoding="utf-8")))
    for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
}


@pytest.mark.model
@pytest.mark.full
@pytest.mark.parametrize(
    "path", [p for p, lines in ALL.items() if any(here for here, _ in lines)], ids=lambda p: p.stem
)
def test_shell_blocks_run(path, names):
    from typer.testing import CliRunner

    from emosteer.cli import app

    for here, line in ALL[path]:
        if here:
            words = shlex.split(line, comments=True)
            assert words[0] == "emosteer", line
            done = CliRunner().invoke(app, words[1:])
            assert done.exit_code == 0, f"{line}: {done.output} {done.exception!r}"


@pytest.mark.parametrize("path", [path for path, lines in ALL.items() if lines], ids=lambda path: path.name)
def test_commands_are_there(path):
    for _, line in ALL[path]:
        program, *words = shlex.split(line, comments=True)
        CHECKS[program](words, line)


def _emosteer(words, line):
    """Every name and value is taken by the command; nothing runs."""
    import click
    from typer.main import get_command

    from emosteer.cli import app

    context = get_command(app).make_context("emosteer", list(words))
    while isinstance(context.command, click.Group) or hasattr(context.command, "commands"):
        name, command, rest = context.command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        try:
            context = command.make_context(name, rest, parent=context)
        except click.BadParameter as error:
            if "does not exist" not in error.message:  # a file that the reader has
                raise AssertionError(f"{line}: {error.message}") from None
            return


def _pip(words, line):
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[0] == "install", line
    for extras in re.findall(r"(?:emosteer|\.)\[([\w,-]+)\]", line):
        assert set(extras.split(",")) <= set(project["optional-dependencies"]), line


def _make(words, line):
    targets = re.findall(r"^([\w-]+)(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), flags=re.M)
    assert words[0] in targets, line


def _pytest(words, line):
    for word in words:
        if "/" in word:
            assert (ROOT / word.split("::")[0]).exists(), line


def _python(words, line):
    if words[0] == "-m":
        if words[1] == "pytest":
            _pytest(words[2:], line)
        else:
            assert importlib.util.find_spec(words[1]) is not None, line
    else:
        assert (ROOT / words[0]).is_file(), line


def _inspect(words, line):
    """The provider's arguments, from its source: inspect_ai may not be here."""
    source = (ROOT / "emosteer" / "harnesses" / "inspect_ai" / "provider.py").read_text()
    assert words[0] == "eval", line
    for name in re.findall(r"-M (\w+)=", line):
        assert re.search(rf"^        {name}: ", source, flags=re.M), line


def _ci(words, line):
    assert (ROOT / ".ci" / "run").exists(), line


CHECKS = {
    "emosteer": _emosteer,
    "pip": _pip,
    "make": _make,
    "pytest": _pytest,
    "python": _python,
    "inspect": _inspect,
    ".ci/run": _ci,
}


def test_there_are_commands():
    assert sum(map(len, ALL.values())) > 40


@pytest.mark.parametrize("page", PAGES)
def test_links(page):
    """Links between pages, and to files of the repository."""
    for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", (DOCS / page).read_text(encoding="utf-8")):
        made = target.endswith((".svg",)) and "benchmarks" in page
        assert made or (DOCS / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_public_names_are_in_the_reference():
    """What `import emosteer` offers stands on a page of the reference."""
    text = "".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    for name in es.__all__:
        value = getattr(es, name)
        if name.startswith("_") or inspect.ismodule(value):
            continue
        owner = value.__module__
        assert re.search(rf"^::: {re.escape(owner)}(\.{value.__name__})?$", text, flags=re.M), (
            f"{owner}.{name}"
        )
