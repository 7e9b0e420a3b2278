"""YAML files: what they may say, errors with the path of the key, and folders that go on by themselves."""

import importlib.util
import json
import re

import pytest
import yaml
from typer.testing import CliRunner

import emosteer as es
from emosteer.cli import app, main
from emosteer.sweep.definition.entries import program_definition, program_of
from emosteer.sweep.engines.progress import SweepProgress

m = es.metrics


@pytest.fixture
def folder(tmp_path, model, tok, bank):
    """A folder with a model, a bank and a definition."""
    model.save_pretrained(tmp_path / "model")
    tok.save_pretrained(tmp_path / "model")
    bank.save(tmp_path / "bank.safetensors")
    return tmp_path


@pytest.fixture
def definition(folder):
    return {
        "model": str(folder / "model"),
        "bank": "bank.safetensors",
        "prompts": ["hello there, ", {"label": "b", "text": "I am so"}, [{"role": "user", "content": "hi"}]],
        "programs": [
            "calm",
            {"cap": {"name": "angry", "high": 0.0}},
            [{"add": {"name": "calm", "strength": 0.1}}, {"ablate": {"name": "proud"}}],
        ],
        "strengths": [0.2],
        "layers": [[1, 2], "middle"],
        "positions": ["all", "-1:"],
        "metrics": [
            {"choices": [" A", " B"]},
            "lexicon",
            {"regex": {"pattern": "e"}},
            {"judge": {"function": "tests.sweep.victim:judge", "version": "1"}},
        ],
        "generation": {"max_new_tokens": 4},
        "random_directions": 1,
        "exclude": [{"positions": "-1:", "layers": [1]}],
    }  # fmt: skip


def write(folder, definition):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(definition))
    return path


def test_yaml_is_the_same_sweep(folder, definition, bank):
    from_file = es.Sweep.from_yaml(write(folder, definition))
    direct = es.Sweep(
        str(folder / "model"), bank=bank, prompts=definition["prompts"],
        programs=["calm", es.cap("angry", 0.0), es.add("calm", 0.1) + es.ablate("proud")], strengths=(0.2,),
        layers=[[1, 2], "middle"], positions=["all", slice(-1, None)],
        metrics=[m.choices([" A", " B"]), m.lexicon(), m.regex("e"), m.judge("tests.sweep.victim:judge", version="1")],
        generation={"max_new_tokens": 4}, random_directions=1, exclude=[{"positions": "-1:", "layers": [1]}],
    )  # fmt: skip
    assert [u.id for u in from_file.plan()] == [u.id for u in direct.plan()]
    assert [x.fingerprint for x in from_file.metrics] == [x.fingerprint for x in direct.metrics]


def test_commands(folder, definition):
    out, cli = folder / "out", CliRunner()
    ran = cli.invoke(app, ["sweep", "run", str(write(folder, definition)), str(out)])
    assert ran.exit_code == 0, ran.output
    assert " failed" in ran.output
    table = es.Sweep.open(out).table()
    parts = sorted(p.name for p in out.glob("part-*"))
    assert {"choices", "lexicon", "regex", "judge", "text"} == set(table["metric"].to_pylist())
    # half of the rows gone: resume needs nothing but the folder
    for name in parts[1:]:
        (out / name).unlink()
    resumed_ = cli.invoke(app, ["sweep", "resume", str(out), "--quiet"])
    assert resumed_.exit_code == 0, resumed_.output
    again = es.Sweep.open(out).table()
    assert sorted(again["unit"].to_pylist()) == sorted(table["unit"].to_pylist())
    status = cli.invoke(app, ["sweep", "status", str(out)])
    assert f"{len(table):,} rows" in status.output
    report = cli.invoke(app, ["sweep", "report", str(out), "--csv", str(folder / "summary.csv")])
    assert report.exit_code == 0, report.output
    assert "choices" in report.output
    assert (folder / "summary.csv").read_text().startswith('"metric","control","concept"')
    missing = cli.invoke(app, ["sweep", "status", str(folder / "nowhere")])
    assert missing.exit_code == 2
    assert not isinstance(missing.exception, FileNotFoundError)


def change(definition, path, value):
    at = definition
    for step in path[:-1]:
        at = at[step]
    if value is DELETE:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return definition


DELETE = object()


@pytest.mark.parametrize(
    ("path", "value", "error"),
    [
        (["modle"], "smollm2", "modle: unknown key; known are model, revision"),
        (["bank"], DELETE, "bank: missing; expected the path of a bank file"),
        (["metrics"], DELETE, "metrics: missing"),
        (["prompts"], 3, "prompts: got int 3"),
        (["prompts"], [], "prompts: empty"),
        (["prompts"], ["a", 4], r"prompts\[1\]: got int 4"),
        (["prompts"], [[{"role": "user"}]], r"prompts\[0\]\[0\]: got dict .*expected \{role, content\}"),
        (["prompts"], "nowhere.txt", "prompts: .*nowhere.txt cannot be read"),
        (["strengths"], ["much"], r"strengths\[0\]: got str 'much', expected a number"),
        (["strengths"], {"from": 0}, "strengths: got dict .* expected a number or a list of numbers"),
        (["strengths"], "much", r"strengths\[0\]: got str 'much', expected a number"),
        (["seeds"], [1.5], r"seeds\[0\]: got float 1.5, expected an integer"),
        (["layers"], [[1, {}]], r"layers\[0\]\[1\]: got dict"),
        (["positions"], ["most"], r"positions\[0\]: positions must be"),
        (["programs"], [{"push": {"name": "calm"}}], r"programs\[0\]: got dict .* expected a concept, or one of add"),
        (["programs"], [{"add": {"name": "calm", "strenght": 1}}], r"programs\[0\].add.strenght: unknown; known are"),
        (["programs"], [{"add": {"name": "calm"}}], r"programs\[0\].add.strength: missing"),
        (["programs"], [[{"add": 3}]], r"programs\[0\]\[0\].add: got int 3"),
        (["metrics"], ["sentiment"], r"metrics\[0\]: no metric 'sentiment'; there are choices"),
        (["metrics"], [{"choices": ["A"]}], r"metrics\[0\].choices: options must be two at least"),
        (["metrics"], [{"regex": {"patern": "a"}}], r"metrics\[0\].regex.patern: unknown; known are pattern"),
        (["metrics"], [{"regex": 3}], r"metrics\[0\].regex: got int 3"),
        (["metrics"], [{"judge": {"function": "nowhere:f"}}], r"metrics\[0\].judge: No module named 'nowhere'"),
        (["generation", "max_new_tokens"], 0, "generation: max_new_tokens must be an integer of at least 1"),
        (["generation"], {"temprature": 1}, "generation.temprature: unknown"),
        (["exclude"], [{"word": "x"}], r"exclude\[0\].word: unknown; known are concept"),
        (["relative"], "yes", "relative: got str 'yes', expected true or false"),
        (["batch_rows"], True, "batch_rows: got bool True"),
        (["controls"], "random", "controls: got str 'random'"),
    ],
)  # fmt: skip
def test_errors_name_the_path(folder, definition, path, value, error):
    with pytest.raises(ValueError, match=f"sweep.yaml: {error}"):
        es.Sweep.from_yaml(write(folder, change(definition, path, value)))


def test_one_value_stands_for_a_list_of_it(folder, definition):
    alone = {"strengths": 0.1, "seeds": 3, "layers": "middle", "positions": "-1:"}
    found = es.Sweep.from_yaml(write(folder, {**definition, **alone}))
    assert (found.strengths, found.seeds, found.layers) == ((0.1,), (3,), ["middle"])
    assert found.position_labels == ("-1:",)


def test_not_yaml(folder):
    (folder / "sweep.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        es.Sweep.from_yaml(folder / "sweep.yaml")
    (folder / "sweep.yaml").write_text("- a")
    with pytest.raises(ValueError, match="expected keys such as bank"):
        es.Sweep.from_yaml(folder / "sweep.yaml")
    with pytest.raises(FileNotFoundError):
        es.Sweep.from_yaml(folder / "nowhere.yaml")


def test_prompts_from_a_file(folder, definition):
    (folder / "prompts.txt").write_text("one\n\ntwo\n")
    found = es.Sweep.from_yaml(write(folder, {**definition, "prompts": "prompts.txt"}))
    assert found.prompts == ["one", "two"]


def test_programs_read_back():
    programs = (
        es.add("a", -0.1), es.ablate("a"), es.cap("a", 0.2) + es.floor("b", -1.0), es.hold("a", 0.3),
        es.rotate("a", 30.0), es.add("a", 0.1, preserve_norm=False),
    )  # fmt: skip
    for program in programs:
        definition = json.loads(json.dumps(program_definition(program)))
        assert program_of("p", definition) == program


def test_manifest_reads_back(sweep, tmp_path, model, tok):
    one = sweep(
        metrics=[m.phrases({"good": " yes"}), m.readings(["calm"], layer=1), m.perplexity()], seeds=(1, 2),
        generation={"max_new_tokens": 3, "temperature": 0.5}, positions=["generated"],
        exclude=[{"seed": 2, "prompt": "1"}],
    )  # fmt: skip
    one.run(tmp_path / "a", progress=False)
    with pytest.raises(
        ValueError, match="cannot be resumed from its manifest alone .model: given as an object"
    ):
        es.Sweep.resumed(tmp_path / "a")
    again = es.Sweep.resumed(tmp_path / "a", model=model, tok=tok)
    assert [u.id for u in again.plan()] == [u.id for u in one.plan()]
    assert [x.fingerprint for x in again.metrics] == [x.fingerprint for x in one.metrics]
    parts = sorted((tmp_path / "a").glob("part-*"))
    again.run(tmp_path / "a", progress=False)
    assert sorted((tmp_path / "a").glob("part-*")) == parts


def test_python_judges_cannot_be_resumed(sweep, tmp_path, model, tok):
    sweep(metrics=[m.judge(lambda text: 1, version="1", name="mine")]).run(tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="the judge 'mine' is a function of a program"):
        es.Sweep.resumed(tmp_path / "a", model=model, tok=tok)


def test_engines_that_are_not_there(sweep, tmp_path):
    if importlib.util.find_spec("vllm") is None:
        with pytest.raises(
            ImportError, match=r"needs vLLM in this environment: pip install .emosteer\[vllm\]"
        ):
            sweep().run(tmp_path / "a", engine="vllm", progress=False)
        assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match='engine must be "local", "ray" or "vllm", got \'cloud\''):
        sweep().run(tmp_path / "a", engine="cloud")
    assert not (tmp_path / "a").exists()


def test_readings_and_summary(sweep, tmp_path):
    found = sweep(metrics=[m.choices(["A", "B"])], random_directions=3).run(tmp_path / "a", progress=False)
    rows = {(r["control"], r["concept"], r["strength"]): r for r in found.summary().to_pylist()}
    assert set(rows) == {
        ("", "calm", 0.4), ("", "angry", 0.4), ("unsteered", "unsteered", 0.0),
        *(("random", f"random {k}", 0.4) for k in range(3)),
    }  # fmt: skip
    values = [r["value"] for r in found.table().to_pylist() if r["concept"] == "calm"]
    mean = sum(values) / 3
    error = (sum((v - mean) ** 2 for v in values) / 2 / 3) ** 0.5
    assert rows["", "calm", 0.4]["mean"] == pytest.approx(mean)
    assert rows["", "calm", 0.4]["standard_error"] == pytest.approx(error)
    assert rows["", "calm", 0.4]["units"] == 3


class Terminal:
    """A stream that says it is a terminal, or not."""

    def __init__(self, tty):
        self.tty, self.text = tty, ""

    def isatty(self):
        return self.tty

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize("tty", [False, True])
def test_progress(tty, monkeypatch):
    stream = Terminal(tty)
    with SweepProgress(2000, stream=stream) as bar:
        bar.skipped()
        bar.saved(999, 3)
        line = bar.line()
    assert line.startswith("1,000 of 2,000 units · ")
    assert line.endswith(" left · 3 failed")
    if tty:
        assert "\x1b[" in stream.text
    else:
        assert stream.text.splitlines()[0] == "0 of 2,000 units · 0 failed"
        assert stream.text.splitlines()[-1].startswith("1,000 of 2,000 units · ")
    silent = Terminal(tty)
    with SweepProgress(10, show=False, stream=silent) as bar:
        bar.saved(10, 0)
    assert silent.text == ""


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (["--vllm", "max_num_seqs=8"], "--vllm is for --engine vllm or ray, the engine is 'local'"),
        (
            ["--engine", "vllm", "--vllm", "max_num_seqs"],
            "--vllm must be a name and a value, .*got 'max_num_seqs'",
        ),
        (["--engine", "vllm", "--vllm", "=8"], "--vllm must be a name and a value"),
    ],
)
def test_arguments_of_vllm_on_the_command_line(given, error, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["emosteer", "sweep", "run", "no.yaml", str(tmp_path / "a"), *given])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert re.search(error, capsys.readouterr().err)
