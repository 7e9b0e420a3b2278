"""One engine with banks in this process, small enough that requests are cut up, preempted and resumed."""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass

import pytest

import emosteer as es
from emosteer.models.loading import folder_of
from tests.steering.conftest import random_bank

if not os.environ.get("EMOSTEER_VLLM"):
    collect_ignore = [
        "test_readings.py",
        "test_requests.py",
        "test_server.py",
        "test_start.py",
        "test_runner_v2.py",
        "test_elsewhere.py",
    ]

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_CPU_CI_ENV": "1",  # a graph as Dynamo traces it, without minutes of Inductor
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
# Twenty requests at a time in room for half of them at full length, sixty-four tokens a pass; a fifth of a GPU's
# memory, since several engines of a run share one.
OPTIONS = {
    "dtype": "float32",
    "max_model_len": 192,
    "max_num_seqs": 20,
    "max_num_batched_tokens": 64,
    "block_size": 32,
    "num_gpu_blocks_override": 13,
    "gpu_memory_utilization": 0.2,
    "disable_log_stats": False,
    "seed": 0,
}


@pytest.fixture(scope="session")
def model():
    return es.load("smollm2")


@pytest.fixture(scope="session")
def bank(model):
    return random_bank(model[0])


@pytest.fixture(scope="session")
def bank_file(bank, tmp_path_factory):
    path = tmp_path_factory.mktemp("bank") / "random.safetensors"
    bank.save(path)
    return path


@pytest.fixture(scope="session")
def prompts():
    """64 prompts of 2 to 80 tokens: several in a pass, others in several passes."""
    generator = random.Random(1)
    lengths = [generator.choice([2, 3, 5, 9, 17, 24, 40, 80]) for _ in range(64)]
    return [[generator.randrange(300, 40_000) for _ in range(length)] for length in lengths]


@dataclass
class Engine:
    """An engine and what lies inside it."""

    llm: object

    @property
    def steering(self):
        executor = self.llm.llm_engine.model_executor
        return executor.driver_worker.worker.model_runner.emosteer

    def preemptions(self):
        return sum(m.value for m in self.llm.get_metrics() if m.name == "vllm:num_preemptions")

    def tokens(self, prompts, args, length=12, **params):
        """The greedy tokens of prompts (of tokens) under `extra_args`."""
        return [answer.outputs[0].token_ids for answer in self.answers(prompts, args, length, **params)]

    def answers(self, prompts, args, length=12, **params):
        from vllm import SamplingParams

        asked = [
            SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, extra_args=one, **params)
            for one in args
        ]
        return self.llm.generate([{"prompt_token_ids": p} for p in prompts], asked, use_tqdm=False)


@pytest.fixture(scope="session")
def engine(bank_file):
    os.environ.update(ENVIRONMENT)
    from vllm import LLM

    settings = {"banks": {"random": str(bank_file)}, "slots": 3, "readable": [5, 15]}
    return Engine(LLM(folder_of("smollm2"), additional_config={"emosteer": settings}, **OPTIONS))


@pytest.fixture
def elsewhere():
    """Asks an engine in a process of its own; the plugin is installed there too."""

    def run(*given, environment=None, **options):
        command = [sys.executable, "-m", "tests.vllm.elsewhere"]
        around = {**os.environ, **ENVIRONMENT, **(environment or {})}
        asked = json.dumps(asked_of_engine(*given, **options))
        done = subprocess.run(command, input=asked, capture_output=True, text=True, env=around)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def anew(monkeypatch):
    """Asks an engine of its own in this process, where vLLM is imported already.

    Not for drafts: with the compiler of their search imported (Numba), vLLM starts no further engine.
    """
    from vllm import envs

    from .elsewhere import answered

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    envs.disable_envs_cache()
    yield lambda *given, **options: answered(asked_of_engine(*given, **options))
    envs.disable_envs_cache()


def asked_of_engine(prompts, args, length, adapters=None, **options):
    """What `elsewhere.answered` takes; options of the engine replace the usual ones."""
    usual = {"model": folder_of("smollm2"), **OPTIONS, **options}
    asked = {"prompts": prompts, "args": args, "length": length, "options": usual}
    return asked if adapters is None else asked | {"adapters": adapters}
