"""The vLLM engine on a small model: the rows of the local engine for all positions, layers and programs.

Graphs are as Dynamo traces them, or left out where a test is about something else: `tests/vllm` compares the steering
itself with transformers on the built-in model.
"""

import dataclasses
import os
import signal

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import emosteer as es
from tests.devices import DEVICES
from tests.steering.conftest import random_bank

if not os.environ.get("EMOSTEER_VLLM"):
    pytest.skip("EMOSTEER_VLLM is unset; `make test-vllm` sets it", allow_module_level=True)

PROMPTS = [
    "The weather today is",
    "My neighbour came in and said: I am so",
    "The letter had lain on the table for a week before anyone opened it, and then it was",
]
# A fifth of a device: on a GPU several engines of a run share one.
OPTIONS = {
    "max_model_len": 128,
    "max_num_seqs": 24,
    "kv_cache_memory_bytes": 1 << 26,
    "gpu_memory_utilization": 0.2,
}


# Without compilers of any kind: vLLM has one for ranks of log-probabilities too.
EAGER = {**OPTIONS, "enforce_eager": True}


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")


@pytest.fixture
def _without_compilers(monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")


@pytest.fixture
def _in_this_process(monkeypatch):
    """An engine that is no process of its own starts in a fifth of the time."""
    from vllm import envs

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    envs.disable_envs_cache()
    yield
    envs.disable_envs_cache()


def shouting(text):
    if "e" in text:
        raise ValueError("an e")
    return text.isupper()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """`(folder, model)` of a small Llama with the tokenizer of the built-in one."""
    torch.manual_seed(0)
    tok = es.load("smollm2")[1]
    config = LlamaConfig(
        vocab_size=len(tok), hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, max_position_embeddings=256, pad_token_id=2, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    made, folder = LlamaForCausalLM(config).eval(), tmp_path_factory.mktemp("model")
    made.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder, made


@pytest.fixture(scope="module")
def bank(model):
    return random_bank(model[1])


@pytest.fixture(scope="module")
def sweep(model, bank):
    """Makes a sweep of the small model; keywords add to or replace the usual ones."""

    def make(**changed):
        usual = dict(
            model=model[0],
            bank=bank,
            prompts=PROMPTS,
            programs=[es.add("calm", 3.0), es.ablate("calm") + es.cap("angry", 0.0)],
            layers=[[1, 2]],
            metrics=[es.metrics.choices([" good", " bad"]), es.metrics.text()],
            generation={"max_new_tokens": 8},
        )
        return es.Sweep(**{**usual, **changed})

    return make


def rows(opened):
    return {(row["unit"], row["metric"]): row for row in opened.table().to_pylist()}


def values(row):
    return dict(item if isinstance(item, tuple) else item.values() for item in row["values"] or ())


def same(found, wanted):
    """Equal rows: texts to the letter, numbers to what two implementations of attention differ by."""
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        other = found[key]
        assert other["text"] == row["text"], key
        assert other["error"] == row["error"], key
        assert values(other) == pytest.approx(values(row), rel=1e-3, abs=2e-3, nan_ok=True), key


@pytest.mark.usefixtures("_in_this_process")
def test_the_rows_are_those_of_the_local_engine(sweep, tmp_path):
    """Drawn tokens, three kinds of positions, two sets of layers, programs of one and two slots, every metric.

    What vLLM refuses, here a prompt that is too long for it, is its rows' reason, and the rest goes on.
    """
    wanted = sweep(
        positions=["all", "generated", "-2:"],
        layers=[[1, 2], [0]],
        prompts=[*PROMPTS[:2], "again and " * 70],
        random_directions=1,
        generation={"max_new_tokens": 8, "temperature": 0.8, "top_k": 20, "top_p": 0.95},
        metrics=[
            es.metrics.choices([" good", " bad", " not good at all"]),
            es.metrics.phrases({"fine": " rather fine", "end": "."}),
            es.metrics.perplexity(),
            es.metrics.readings(["calm", "angry"], layer=1),
            es.metrics.readings(name="of all"),
            es.metrics.judge(shouting, version="1"),
            es.metrics.repetition(),
        ],
    )
    local = wanted.run(tmp_path / "local", progress=False)
    there = wanted.run(tmp_path / "vllm", engine="vllm", progress=False, **OPTIONS)
    assert local.status().failed > 0  # a metric that throws
    ours, theirs = rows(local), rows(there)
    long = {key for key, row in ours.items() if row["prompt"] == "2"}
    assert all("128" in theirs[key]["error"] for key in long)
    for key in long:
        del ours[key], theirs[key]
    same(theirs, ours)
    steered = [row for row in ours.values() if row["metric"] == "text" and row["concept"] == "calm"]
    assert len({row["text"] for row in steered}) > 2  # or the programs have done nothing, here and there


@pytest.mark.skipif(DEVICES < 2, reason="two processes want two devices")
@pytest.mark.usefixtures("_without_compilers")
def test_fractions_of_the_norm_and_metrics_that_come_later_in_two_processes(sweep, tmp_path, monkeypatch):
    """Half a model each. Greedy text at a fraction of each token's norm; a run with more metrics generates no text."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    programs = [es.add("calm", 0.5), es.ablate("angry") + es.add("joyful", -0.4), es.rotate("proud", 50)]
    usual = dict(relative=True, programs=programs, positions=["all", "mask:0010110111"])
    more = dict(
        metrics=[es.metrics.choices([" good", " bad"]), es.metrics.perplexity(), es.metrics.readings()]
    )
    sweep(**usual).run(tmp_path / "vllm", progress=False)
    options = {**EAGER, "tensor_parallel_size": 2}
    found = sweep(**usual, **more).run(tmp_path / "vllm", engine="vllm", progress=False, **options)
    same(rows(found), rows(sweep(**usual, **more).run(tmp_path / "local", progress=False)))


@pytest.mark.usefixtures("_without_compilers")
def test_a_killed_engine_loses_nothing_that_was_reported(sweep, tmp_path, monkeypatch):
    """It is killed with requests left to be sent, so that some are missing: no other is taken, no wait goes on."""
    from emosteer.sweep.engines.vllm.server import Ended, Server

    hear = Server.answers
    heard, killed = [], []

    def answers(self):
        if len(heard) > 5 and not killed:
            killed.extend(self.processes)
            for process in killed:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            with pytest.raises(Ended, match="ended amid the run"):
                self.ask("more", [1, 2, 3], max_tokens=1)
            while True:  # until nothing is left but the wait for a process that is gone
                hear(self)
        found = hear(self)
        heard.extend(found)
        return found

    monkeypatch.setattr(Server, "answers", answers)
    one = sweep(seeds=range(3), generation={"max_new_tokens": 4, "temperature": 1.0})
    options = {**EAGER, "max_num_seqs": 2}
    with pytest.raises(Exception, match="vLLM has ended amid the run.*what was reported done is safe"):
        one.run(tmp_path, engine="vllm", progress=False, flush_seconds=0.0, **options)
    assert killed
    done = rows(es.Sweep.open(tmp_path))
    assert len(done) > 5
    wanted = rows(one.run(tmp_path, progress=False))
    assert len(wanted) == 2 * one.plan().size
    assert {key: wanted[key] for key in done} == done


@pytest.mark.usefixtures("_without_compilers")
def test_a_vllm_in_a_worker_of_ray(sweep, tmp_path, monkeypatch):
    """The worker is killed, and its engine ends with it; another takes their place, and ends both when it is done."""
    from emosteer.sweep.engines.ray.driver import _Driver

    psutil = pytest.importorskip("psutil")
    come, killed = _Driver._come, []

    def running(name):
        found = [p for p in psutil.Process().children(recursive=True) if name in "".join(p.cmdline())]
        return [p for p in found if p.status() != psutil.STATUS_ZOMBIE]

    def killing(self, ref, held):
        come(self, ref, held)
        if held.tasks and not killed:
            killed.extend(running("EngineCore"))
            for worker in running("ray::Worker"):
                worker.kill()
            assert not psutil.wait_procs(killed, timeout=30)[1]

    monkeypatch.setattr(_Driver, "_come", killing)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    one = sweep(seeds=range(2), generation={"max_new_tokens": 4, "temperature": 1.0})
    options = dict(num_workers=1, units_per_task=4, vllm=EAGER)
    found = one.run(tmp_path / "there", engine="ray", progress=False, **options)
    assert len(killed) == 1
    assert not running("EngineCore")
    same(rows(found), rows(one.run(tmp_path / "local", progress=False)))


@pytest.mark.usefixtures("_without_compilers", "_in_this_process")
def test_a_stream_that_is_not_the_models_is_noticed(sweep, tmp_path, monkeypatch):
    """What a model would do whose weights are others: here the bank of vLLM's workers is another."""
    from emosteer.sweep.engines.vllm import server

    class Turned(server.Server):
        def __init__(self, model, revision, dtype, banks, *rest):
            turned = {layer: -v for layer, v in banks.bank.directions.items()}
            other = es.Bank(banks.bank.names, turned, scale=banks.bank.scale)
            super().__init__(model, revision, dtype, dataclasses.replace(banks, bank=other), *rest)

    monkeypatch.setattr(server, "Server", Turned)
    with pytest.raises(RuntimeError, match="differs from that of transformers by .* nats a token"):
        sweep(controls=()).run(tmp_path, engine="vllm", progress=False, **EAGER)


def test_what_vllm_is_told_is_what_it_listens_to():
    """Without a word it passes over the name of a variable that it does not know."""
    from vllm import envs

    from emosteer.sweep.engines.vllm.server import ENVIRONMENT
    from tests.vllm import conftest

    assert not (ENVIRONMENT.keys() | conftest.ENVIRONMENT.keys()) - envs.environment_variables.keys()


def test_arguments_that_cannot_be_taken(sweep, model, tmp_path):
    tok = es.load("smollm2")[1]
    with pytest.raises(ValueError, match="loads the model itself"):
        sweep(model=model[1], tok=tok).run(tmp_path / "a", engine="vllm", progress=False)
    with pytest.raises(ValueError, match="async_scheduling is set by emosteer"):
        sweep().run(tmp_path / "b", engine="vllm", progress=False, async_scheduling=True)
    with pytest.raises(ValueError, match="arguments of vllm.EngineArgs.*no_such"):
        sweep().run(tmp_path / "c", engine="vllm", progress=False, no_such=1)
    with pytest.raises(RuntimeError, match="vLLM does not start with model"):
        sweep().run(tmp_path / "d", engine="vllm", progress=False, max_model_len=10**6)
