"""The vLLM engine on the built-in model: the rows of the local engine for all positions and programs; two processes."""

import os
import signal
import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import emosteer as es
from tests.steering.conftest import random_bank

if not os.environ.get("EMOSTEER_VLLM"):
    pytest.skip("EMOSTEER_VLLM is unset; `make test-vllm` sets it", allow_module_level=True)

PROMPTS = [
    "The weather today is",
    "My neighbour came in and said: I am so",
    "The letter had lain on the table for a week before anyone opened it, and then it was",
]
OPTIONS = {"max_model_len": 128, "max_num_seqs": 24}


def shouting(text):
    if "e" in text:
        raise ValueError("an e")
    return text.isupper()


@pytest.fixture(scope="module")
def bank():
    return random_bank(es.load("smollm2")[0])


@pytest.fixture(scope="module")
def sweep(bank):
    """Makes a sweep of the built-in model; keywords add to or replace the usual ones."""

    def make(**changed):
        usual = dict(
            model="smollm2",
            bank=bank,
            prompts=PROMPTS,
            programs=[es.add("calm", 20.0), es.ablate("calm") + es.cap("angry", 0.0)],
            layers=[[10, 20]],
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


def test_the_rows_are_those_of_the_local_engine(sweep, tmp_path):
    """Drawn tokens, three kinds of positions, programs of one and two slots, every metric.

    What vLLM refuses, here a prompt that is too long for it, is its rows' reason, and the rest goes on.
    """
    wanted = sweep(
        positions=["all", "generated", "-2:"],
        prompts=[*PROMPTS[:2], "again and " * 70],
        random_directions=2,
        generation={"max_new_tokens": 8, "temperature": 0.8, "top_k": 20, "top_p": 0.95},
        metrics=[
            es.metrics.choices([" good", " bad", " not good at all"]),
            es.metrics.phrases({"fine": " rather fine", "end": "."}),
            es.metrics.perplexity(),
            es.metrics.readings(["calm", "angry"], layer=15),
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


def test_fractions_of_the_norm_and_metrics_that_come_later(sweep, tmp_path):
    """Greedy text at a fraction of each token's norm; a run with more metrics generates nothing again."""
    usual = dict(relative=True, programs=["calm", "desperate"], strengths=(-0.5, 0.5))
    more = dict(
        metrics=[es.metrics.choices([" good", " bad"]), es.metrics.perplexity(), es.metrics.readings()]
    )
    sweep(**usual).run(tmp_path / "vllm", progress=False)
    found = sweep(**usual, **more).run(tmp_path / "vllm", engine="vllm", progress=False, **OPTIONS)
    same(rows(found), rows(sweep(**usual, **more).run(tmp_path / "local", progress=False)))


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes want two processors")
def test_two_processes_with_half_a_model_each(tmp_path, monkeypatch):
    torch.manual_seed(0)
    tok = es.load("smollm2")[1]
    config = LlamaConfig(
        vocab_size=len(tok), hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, max_position_embeddings=256, pad_token_id=2, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "model")
    tok.save_pretrained(tmp_path / "model")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    one = es.Sweep(
        tmp_path / "model",
        bank=random_bank(model),
        prompts=["hello there", "and so on and"],
        programs=[es.add("calm", 3.0)],
        layers=[[1, 2]],
        metrics=[es.metrics.choices([" good", " bad"]), es.metrics.perplexity(), es.metrics.readings()],
        generation={"max_new_tokens": 6},
    )
    there = one.run(tmp_path / "vllm", engine="vllm", progress=False, tensor_parallel_size=2, **OPTIONS)
    same(rows(there), rows(one.run(tmp_path / "local", progress=False)))


def test_a_killed_engine_loses_nothing_that_was_reported(sweep, tmp_path, monkeypatch):
    from emosteer.sweep.engines.vllm.server import Server

    before = Server.answers
    heard = []

    def answers(self):
        found = before(self)
        heard.extend(found)
        if len(heard) > 5:  # early: an engine that runs ahead has answered more than is heard yet
            assert self.processes  # or nothing is killed
            for process in self.processes:
                os.kill(process.pid, signal.SIGKILL)
        return found

    monkeypatch.setattr(Server, "answers", answers)
    one = sweep(seeds=range(8), generation={"max_new_tokens": 16, "temperature": 1.0})
    with pytest.raises(Exception, match="vLLM has ended amid the run.*what was reported done is safe"):
        one.run(tmp_path, engine="vllm", progress=False, flush_seconds=0.0, **OPTIONS)
    done = rows(es.Sweep.open(tmp_path))
    assert len(done) > 5
    wanted = rows(one.run(tmp_path, progress=False))
    assert len(wanted) == 2 * one.plan().size
    assert {key: wanted[key] for key in done} == done


def test_a_stream_that_is_not_the_models_is_noticed(sweep, tmp_path, monkeypatch):
    """What a model would do whose blocks hand something else along: here the bank of vLLM's workers is another."""
    from emosteer.sweep.engines.vllm import server

    turned = {layer: -v for layer, v in random_bank(es.load("smollm2")[0]).directions.items()}

    class Turned(server.Server):
        def __init__(self, model, revision, dtype, bank, *rest):
            super().__init__(model, revision, dtype, es.Bank(bank.names, turned, scale=bank.scale), *rest)

    monkeypatch.setattr(server, "Server", Turned)
    with pytest.raises(RuntimeError, match="differs from that of transformers by .* nats a token"):
        sweep(controls=()).run(tmp_path, engine="vllm", progress=False, **OPTIONS)


def test_arguments_that_cannot_be_taken(sweep, bank, tmp_path):
    model, tok = es.load("smollm2")
    with pytest.raises(ValueError, match="loads the model itself"):
        sweep(model=model, tok=tok).run(tmp_path / "a", engine="vllm", progress=False)
    with pytest.raises(ValueError, match="enforce_eager is set by emosteer"):
        sweep().run(tmp_path / "b", engine="vllm", progress=False, enforce_eager=False)
    with pytest.raises(ValueError, match="arguments of vllm.EngineArgs.*no_such"):
        sweep().run(tmp_path / "c", engine="vllm", progress=False, no_such=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="vLLM does not start with model"):
            sweep().run(tmp_path / "d", engine="vllm", progress=False, max_model_len=10**6)
