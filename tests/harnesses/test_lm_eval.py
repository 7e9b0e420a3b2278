"""lm-evaluation-harness on a steered model, on tasks defined here: nothing is downloaded."""

import csv
import json
import os
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

import emosteer as es

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from emosteer.harnesses.lm_eval import SteeredLM, evaluate
from emosteer.harnesses.lm_eval.table import grid

QUESTIONS = [
    ("The sea was", " calm", " loud"),
    ("I am so", " glad", " low"),
    ("hello there, my old", " friend", " foe"),
    ("what now", "?", "!"),
    ("He slammed the", " door", " book"),
]
CHOICE = """
task: which
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}, cache_dir: "{cache}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{[first, second]}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
TEXT = """
task: says
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}, cache_dir: "{cache}"}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{first}}}}"
generation_kwargs: {{until: ["</s>"], max_gen_toks: 6, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def tasks(tmp_path):
    """A folder with two tasks, and the harness's manager that knows them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = tmp_path / "data.jsonl"
    rows = [dict(question=q, first=a, second=b) for q, a, b in QUESTIONS]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in (("which", CHOICE), ("says", TEXT)):
        (folder / f"{name}.yaml").write_text(text.format(data=data, cache=tmp_path / "cache"))
    return folder


@pytest.fixture
def lm(model, tok, bank):
    found = SteeredLM(model, bank, tokenizer=tok, layers=[1, 2], batch_size=2)
    yield found
    found.close()


def likelihood(model, tok, bank, program, question, answer):
    """log p(answer | question) and whether it is the greedy one, steered, one pass, float64 softmax."""
    context = tok(question, add_special_tokens=False).input_ids
    ids = tok(question + answer, add_special_tokens=False).input_ids
    assert ids[: len(context)] == context
    with es.steer(model, bank, [program], layers=[1, 2]), torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, len(context) - 1 : -1].double()
    targets = torch.tensor(ids[len(context) :])
    scores = logits.log_softmax(-1).gather(1, targets[:, None])
    return float(scores.sum()), bool((logits.argmax(-1) == targets).all())


PROGRAMS = [es.add("calm", 0.4), es.add("angry", -0.3) + es.cap("calm", 0.0)]


@pytest.mark.parametrize("program", [None, *PROGRAMS], ids=str)
def test_likelihoods(lm, model, tok, bank, program):
    """The harness's own batches, steered, give what one pass of each text gives."""
    lm.program = program
    requests = [Instance("loglikelihood", {}, (q, a), 0) for q, *answers in QUESTIONS for a in answers]
    found = lm.loglikelihood(requests, disable_tqdm=True)
    lm.close()
    for request, (score, greedy) in zip(requests, found):
        assert (score, greedy) == (
            pytest.approx(likelihood(model, tok, bank, program, *request.args)[0], abs=1e-4),
            likelihood(model, tok, bank, program, *request.args)[1],
        )


def test_texts(lm, model, tok, bank):
    """Greedy texts of a padded batch are those of each prompt alone."""
    asked = {"until": ["</s>"], "max_gen_toks": 6, "do_sample": False}
    requests = [Instance("generate_until", {}, (q, dict(asked)), 0) for q, *_ in QUESTIONS]
    lm.program = PROGRAMS[0]
    found = lm.generate_until(requests, disable_tqdm=True)
    lm.close()
    with es.steer(model, bank, [PROGRAMS[0]], layers=[1, 2]):
        for (question, *_), text in zip(QUESTIONS, found):
            ids = torch.tensor([tok(question, add_special_tokens=False).input_ids])
            out = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
            assert text == tok.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.full
def test_one_table_over_strengths(lm, model, tok, bank, tasks):
    """Accuracies are those of likelihoods computed here; one model, as it was before at the end."""
    strengths = (-0.4, 0.2, 0.4)
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    programs = [es.add("calm", s) for s in strengths] + [es.ablate("angry")]
    scores = evaluate(lm, ["which", "says"], programs, task_manager=manager, bootstrap_iters=0)
    assert lm.program == es.programs.Program()
    lm.close()
    for score in scores:
        if score.metric != "acc":
            continue
        program = next((p for p in programs if str(p) == score.program), None)
        right = 0
        for question, first, second in QUESTIONS:
            one, other = (likelihood(model, tok, bank, program, question, a)[0] for a in (first, second))
            right += one > other
        assert score.value == pytest.approx(right / len(QUESTIONS))
    assert {s.task for s in scores} == {"which", "says"}
    head, rows = grid(scores)
    assert head == ["task", "metric", "concept", "-0.4", "0", "0.2", "0.4", "program"]
    by = {tuple(row[:3]): row[3:] for row in rows}
    assert {key[2] for key in by} == {"calm", str(es.ablate("angry"))}
    assert all(by["which", "acc", "calm"][:4])
    assert by["which", "acc", "calm"][4] == ""


@pytest.mark.slow
def test_as_the_harness_makes_it(model, tok, bank, tasks, tmp_path):
    """By name, with arguments in the harness's own words."""
    model.save_pretrained(tmp_path / "model")
    tok.save_pretrained(tmp_path / "model")
    bank.save(tmp_path / "bank.safetensors")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = f"pretrained={tmp_path / 'model'},bank={tmp_path / 'bank.safetensors'},layers=1+2"
    found = {}
    for steer in ("", ",steer=calm +0.4", ",steer=angry -0.3; calm <= 0"):
        results = simple_evaluate(
            model="emosteer",
            model_args=arguments + steer,
            tasks=["which"],
            task_manager=manager,
            batch_size=2,
            bootstrap_iters=0,
        )
        found[steer] = {
            (s["doc_id"], k): s["resps"][k][0][0] for s in results["samples"]["which"] for k in (0, 1)
        }
    for steer, program in zip(found, (None, *PROGRAMS)):
        for (number, k), score in found[steer].items():
            question, *answers = QUESTIONS[number]
            expected, _ = likelihood(model, tok, bank, program, question, answers[k])
            assert float(score) == pytest.approx(expected, abs=1e-4)


def test_the_command(model, tok, bank, tasks, tmp_path, monkeypatch):
    from emosteer.cli import app

    # The harness's own tasks are thousands of files.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    model.save_pretrained(tmp_path / "model")
    tok.save_pretrained(tmp_path / "model")
    bank.save(tmp_path / "bank.safetensors")
    given = [
        "lm-eval",
        "--tasks",
        "which",
        "--model",
        tmp_path / "model",
        "--bank",
        tmp_path / "bank.safetensors",
    ]
    given += ["--include-path", tasks, "--layers", "1-2", "--random", "1", "--out", tmp_path / "scores.csv"]
    done = CliRunner().invoke(app, [*map(str, given), "--add", "calm=0.2,0.4", "--cap", "angry=0"])
    assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "scores.csv").open()))
    arms = {(row["control"], row["concept"], row["strength"]) for row in rows}
    assert arms == {
        ("unsteered", "unsteered", "0.0"),
        ("", "calm", "0.2"),
        ("", "calm", "0.4"),
        ("", "angry", "nan"),
        ("random", "random 0", "0.2"),
        ("random", "random 0", "0.4"),
        ("random", "random 0", "nan"),
    }
    lines = [line.split() for line in done.output.splitlines()]
    assert ["task", "metric", "concept", "0", "0.2", "0.4", "program"] in lines
    assert any(line[:3] == ["which", "acc", "calm"] and len(line) > 5 for line in lines)


def test_wrong_arguments(model, tok, bank, lm, tmp_path):
    with pytest.raises(ValueError, match="bank is missing"):
        SteeredLM(model, tokenizer=tok)
    with pytest.raises(ValueError, match="dtype must be float32"):
        SteeredLM("smollm2", bank, dtype="float7")
    with pytest.raises(ValueError, match="tasks is empty"):
        evaluate(lm, [], [])
    with pytest.raises(ValueError, match="did you mean 'joyful'"):
        lm.program = es.add("joyous", 0.1)
