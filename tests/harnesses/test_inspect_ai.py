"""inspect_ai on a steered model, with tasks defined here: nothing is downloaded."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest
import torch

import emosteer as es

os.environ.setdefault("HF_HUB_OFFLINE", "1")
pytest.importorskip("inspect_ai", reason="inspect_ai is not installed: make test-peers has it")

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import CachePolicy, ChatMessageUser, ContentImage, GenerateConfig, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, solver
from inspect_ai.tool import ToolInfo

from emosteer.harnesses.inspect_ai import served
from emosteer.harnesses.inspect_ai.batches import Batches
from emosteer.harnesses.inspect_ai.provider import SteeredAPI
from emosteer.harnesses.inspect_ai.requests import Answer, Request
from emosteer.sweep.plan import Generation

from ..patience import PATIENCE

QUESTIONS = ("hello there", "he", "What now, my old friend? Tell me of the sea, ", "I am so")
WORDS = ("calm +0.4", "angry -0.3; calm <= 0", None)
PROGRAMS = (es.add("calm", 0.4), es.add("angry", -0.3) + es.cap("calm", 0.0), es.programs.Program())


@pytest.fixture
def folder(model, tok, bank, tmp_path):
    """A folder with the tiny model and its bank."""
    model.save_pretrained(tmp_path / "model")
    tok.save_pretrained(tmp_path / "model")
    bank.save(tmp_path / "bank.safetensors")
    return tmp_path


@pytest.fixture
def provider(folder):
    """Makes models of inspect_ai; closed at the end, after which nothing is left."""
    made = []

    def make(**arguments):
        usual = dict(bank=str(folder / "bank.safetensors"), layers=[1, 2], memoize=False)
        made.append(get_model(f"emosteer/{folder / 'model'}", **{**usual, **arguments}))
        return made[-1]

    yield make
    for one in made:
        one.api.close()
    assert not served._shared


@pytest.fixture
def batches(monkeypatch):
    """The sizes of all batches, and the programs in them."""
    found, run = [], served.Served._run

    def noted(self, some):
        found.append([str(request.program) for request in some])
        return run(self, some)

    monkeypatch.setattr(served.Served, "_run", noted)
    return found


def alone(model, tok, bank, program, question, tokens=6, **where):
    """The greedy text of one question, steered by the library."""
    text = tok.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tok(text, add_special_tokens=False).input_ids])
    with es.steer(model, bank, [program], **{"layers": [1, 2], **where}), torch.no_grad():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
    return tok.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def task(solvers=None, targets=None, **config):
    """The questions, each with a target that its text is to include."""
    samples = [Sample(q, target=(targets or {}).get(q, "\x00")) for q in QUESTIONS]
    return Task(samples, solver=solvers or generate(), scorer=includes(), config=GenerateConfig(**config))


def ran(tmp_path, *given, **options):
    logs = eval(*given, log_dir=str(tmp_path / "logs"), display="none", **options)
    for log in logs:
        assert log.status == "success", log.error
    return logs


def texts(log):
    return {sample.input: sample.output.completion for sample in log.samples}


def test_a_task_over_programs(provider, model, tok, bank, batches, tmp_path):
    """One load, mixed batches; every text is that of its question alone, and scores follow from texts."""
    models = [provider(steer=words) for words in WORDS]
    assert len({id(one.api.served) for one in models}) == 1
    right = {q: alone(model, tok, bank, PROGRAMS[0], q)[1:4] for q in QUESTIONS[:3]}
    logs = ran(tmp_path, task(targets=right, max_tokens=6), model=models, max_tasks=3)
    for log, program in zip(logs, PROGRAMS):
        expected = {q: alone(model, tok, bank, program, q) for q in QUESTIONS}
        assert texts(log) == expected
        assert {s.output.metadata["emosteer_program"] for s in log.samples} == {str(program)}
        hits = sum(right.get(q, "\x00").lower() in text.lower() for q, text in expected.items())
        assert log.results.scores[0].metrics["accuracy"].value == hits / len(QUESTIONS)
    assert sum(map(len, batches)) == len(WORDS) * len(QUESTIONS)
    assert max(len(set(one)) for one in batches) > 1


def test_a_program_for_one_request(provider, model, tok, bank, batches, tmp_path):
    """A solver chooses; requests of one batch differ."""

    @solver
    def by_length():
        async def solve(state, generate):
            program = WORDS[len(state.input_text) % 2]
            return await generate(state, extra_body={"steer": program})

        return solve

    (log,) = ran(tmp_path, task(by_length(), max_tokens=6), model=provider(batch_size=4))
    for question, text in texts(log).items():
        assert text == alone(model, tok, bank, PROGRAMS[len(question) % 2], question)
    assert any(len(set(one)) == 2 for one in batches)


def test_positions(provider, model, tok, bank, tmp_path):
    """Only generated tokens are steered, padded or not."""
    given = dict(positions="generated", layers="1+2", steer=WORDS[0])
    (log,) = ran(tmp_path, task(max_tokens=6), model=provider(**given))
    for question, text in texts(log).items():
        assert text == alone(model, tok, bank, PROGRAMS[0], question, positions="generated")


def test_drawn_texts_are_their_own(provider, batches, tmp_path):
    """With a seed a text is the same whatever shares its batch; without one every epoch has another."""
    drawn = dict(max_tokens=8, temperature=1.0, top_p=0.95)
    one, many = provider(steer=WORDS[0], batch_size=1), provider(steer=WORDS[0], batch_size=4)
    (first,) = ran(tmp_path, task(seed=3, **drawn), model=one)
    (second,) = ran(tmp_path, task(seed=3, **drawn), model=many)
    assert texts(first) == texts(second)
    assert {1} < set(map(len, batches))
    (free,) = ran(tmp_path, task(**drawn), model=many, epochs=2)
    by = {(s.input, s.epoch): s.output.completion for s in free.samples}
    assert any(by[q, 1] != by[q, 2] for q in QUESTIONS)


def test_where_a_text_ends(provider, model, tok, bank, tmp_path):
    """At the first of its strings, at its length, or where the model has no room; usage counts tokens."""
    plain = {q: alone(model, tok, bank, PROGRAMS[0], q, tokens=12) for q in QUESTIONS}
    stop = plain[QUESTIONS[0]][3:5]
    model = provider(steer=WORDS[0])
    (log,) = ran(tmp_path, task(max_tokens=12, stop_seqs=["never", stop]), model=model)
    for sample in log.samples:
        text = plain[sample.input]
        assert sample.output.completion == text.split(stop)[0]
        usage = sample.output.usage
        if stop in text:
            assert sample.output.stop_reason == "stop"
            assert usage.output_tokens < 12
        else:
            assert (sample.output.stop_reason, usage.output_tokens) == ("max_tokens", 12)
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert log.samples[0].output.stop_reason == "stop"
    long = Task([Sample("a" * 600, target="x")], solver=generate(), scorer=includes())
    (log,) = ran(tmp_path, long, model=model)
    assert log.samples[0].output.stop_reason == "model_length"


def test_the_cache_tells_programs_apart(provider, monkeypatch, batches, tmp_path):
    """inspect_ai's cache of outputs serves the same program again, and no other."""
    monkeypatch.setenv("INSPECT_CACHE_DIR", str(tmp_path / "cache"))
    cached = task(generate(cache=CachePolicy(expiry=None)), max_tokens=6)
    found = [texts(ran(tmp_path, cached, model=provider(steer=words))[0]) for words in WORDS[:2]]
    assert found[0] != found[1]
    before = len(batches)
    assert texts(ran(tmp_path, cached, model=provider(steer=WORDS[0]))[0]) == found[0]
    assert len(batches) == before


def test_memory_runs_out(provider, model, tok, bank, batches, tmp_path, monkeypatch):
    """A batch that does not fit runs in halves."""
    one = provider(steer=WORDS[0], batch_size=4)
    original = one.api.served.model.generate

    def small(*args, **kwargs):
        if len(kwargs["input_ids"]) > 1:
            raise torch.OutOfMemoryError("no room")
        return original(*args, **kwargs)

    monkeypatch.setattr(one.api.served.model, "generate", small)
    (log,) = ran(tmp_path, task(max_tokens=6), model=one)
    assert texts(log) == {q: alone(model, tok, bank, PROGRAMS[0], q) for q in QUESTIONS}
    assert max(map(len, batches)) > 1


def test_an_error_reaches_every_request(provider, tmp_path, monkeypatch):
    """And leaves the provider able to go on."""
    one = provider(batch_size=4)

    def broken(*args, **kwargs):
        raise RuntimeError("broken on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(one.api.served.model, "generate", broken)
        (log,) = eval(
            task(max_tokens=6), model=one, log_dir=str(tmp_path), display="none", fail_on_error=False
        )
    assert all("broken on purpose" in sample.error.message for sample in log.samples)
    ran(tmp_path, task(max_tokens=6), model=one)


def test_a_cancelled_request_takes_nobody_along():
    """One that waits leaves the queue; one whose batch runs lets it end; the others are answered."""
    ran, started, go_on = [], threading.Event(), threading.Event()

    def run(some):
        ran.append([request.seed for request in some])
        started.set()
        assert go_on.wait(PATIENCE)
        for request in some:
            request.answer = Answer("", 0, False)

    async def all_of_them():
        batches = Batches(run, 2)
        requests = [Request((1,), es.programs.Program(), Generation(), seed=n) for n in range(6)]
        tasks = [asyncio.create_task(batches.answer(request)) for request in requests]
        await asyncio.to_thread(started.wait, 20)
        tasks[0].cancel()  # runs
        tasks[3].cancel()  # waits
        await asyncio.sleep(0.1)
        go_on.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(all_of_them())
    assert [type(one).__name__ for one in found] == [
        "CancelledError" if n in (0, 3) else "NoneType" for n in range(6)
    ]
    assert ran == [[0, 1], [2, 4], [5]]


@pytest.mark.model
def test_on_the_built_in_model(smollm2, tmp_path):
    """By inspect_ai's own way from a name and arguments: texts are those of `es.steer`."""
    model, tok = smollm2
    names = ("joyful", "desperate")
    bank = es.extract(model, tok, es.emotions.corpus().only(names), layers=[14], progress=False)
    bank.save(tmp_path / "bank.safetensors")
    ask = ("How was your day?", "Say what you see at the window of the train, please.")
    samples = [Sample(q, target="day") for q in ask]
    given = Task(samples, solver=generate(), scorer=includes(), config=GenerateConfig(max_tokens=10))
    arguments = dict(bank=str(tmp_path / "bank.safetensors"), layers=14, steer="joyful +0.4")
    (log,) = ran(tmp_path, given, model="emosteer/smollm2", model_args=arguments)
    for question, text in texts(log).items():
        assert text == alone(model, tok, bank, es.add("joyful", 0.4), question, tokens=10, layers=14)
        assert text != alone(model, tok, bank, None, question, tokens=10, layers=14)
    for one in list(served._shared.values()):
        served.release(one)


def test_what_is_wrong_is_named(folder, provider, tmp_path):
    name, bank = str(folder / "model"), str(folder / "bank.safetensors")
    for arguments, message in (
        ({"bank": None}, "bank is missing"),
        ({"steer": "calm 0.1"}, "write calm"),
        ({"steer": "add calm 0.1"}, 'write "calm [+]0.1"'),
        ({"steer": "clam +0.1"}, "did you mean 'calm'"),
        ({"steer": "; ".join(["calm +0.1"] * 5)}, "steer combines 5 directions"),
        ({"layers": "a"}, "layers must be"),
        ({"positions": "some"}, "positions must be"),
        ({"dtype": "float7"}, "dtype must be"),
        ({"batch_size": 0}, "batch_size must be an integer"),
        ({"base_url": "http://x"}, "base_url must be None"),
    ):
        with pytest.raises(ValueError, match=message):
            SteeredAPI(name, **{"bank": bank, **arguments})
        assert not served._shared
    one = provider()
    for config, message in (
        (dict(logprobs=True), "logprobs is True"),
        (dict(num_choices=2), "num_choices is 2"),
    ):
        (log,) = eval(task(**config), model=one, log_dir=str(tmp_path), display="none")
        assert message in log.error.message
    tool = ToolInfo(name="look", description="up")
    picture = [ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")])]
    for messages, tools, message in (
        (["?"], [tool], r"no tools, got \['look'\]"),
        (picture, [], "has image"),
    ):
        with pytest.raises(ValueError, match=message):
            asyncio.run(one.api.generate(messages, tools, "auto", GenerateConfig()))


def test_the_command_line_says_what_is_wrong_without_a_traceback(folder, tmp_path):
    (tmp_path / "task.py").write_text(
        "from inspect_ai import Task, task\nfrom inspect_ai.dataset import Sample\n\n\n"
        "@task\ndef one():\n    return Task(dataset=[Sample(input='?')])\n"
    )
    command = [
        sys.executable, "-m", "inspect_ai", "eval", "task.py", "--model", f"emosteer/{folder / 'model'}",
        "-M", f"bank={folder / 'bank.safetensors'}", "-M", "steer=clam +0.1", "--display", "plain",
    ]  # fmt: skip
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    said = " ".join((found.stdout + found.stderr).split())
    assert found.returncode != 0
    assert "did you mean 'calm'" in said
    assert "Traceback" not in said
