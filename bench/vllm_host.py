"""What the host does before a pass of 256 steered requests of vLLM: `python bench/vllm_host.py` (seconds, without it).

The rows of the table and of the tokens are filled as `emosteer.vllm` fills them in an engine, without a model and
without vLLM, each request with a program of its own: the same requests as in the pass before, as while texts are
written; one in sixteen new, as when others end; all new, which a start of 256 requests is; all new with a mask over a
thousand positions each. Writes bench/results/vllm_host.csv.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from time import perf_counter

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

import emosteer as es
from bench.common import Result, machine, save, summary
from emosteer.vllm import params
from emosteer.vllm.asking import Asked
from emosteer.vllm.deployment import Deployment
from emosteer.vllm.rows import Rows
from emosteer.vllm.settings import Settings
from emosteer.vllm.tokens import TokenRows

REQUESTS, MASKED, DEPTH, DIM = 256, 1000, 30, 576
CASE = "a pass of 256 requests"


class Host:
    """An engine's tables, and requests with programs that no pass has seen."""

    def __init__(self, bank: Path) -> None:
        cpu = torch.device("cpu")
        self.deployment = Deployment(Settings.read({"banks": {"random": str(bank)}}), DEPTH, DIM)
        self.tokens = TokenRows(Rows(self.deployment, 2 * REQUESTS, cpu), 2048, REQUESTS, cpu)
        self.starts = torch.arange(REQUESTS + 1, dtype=torch.int32)
        self.places = torch.full((2048,), 50)
        self.seen = 0
        self.generator = random.Random(0)

    def new(self, count: int, masked: bool = False) -> list:
        found = []
        for _ in range(count):
            self.seen += 1
            positions = [self.generator.random() < 0.5 for _ in range(MASKED)] if masked else "generated"
            found.append(self.deployment.placed(Asked.of(params(f"calm +{self.seen}", positions=positions))))
        return found

    def fill(self, batch: list) -> float:
        start = perf_counter()
        self.tokens.fill(batch, [10] * REQUESTS, self.starts, self.places, REQUESTS)
        return perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    print(machine())
    generator = torch.Generator().manual_seed(0)
    directions = {layer: torch.randn(8, DIM, generator=generator) for layer in range(DEPTH)}
    bank = es.Bank(["calm", *"abcdefg"], directions, scale=dict.fromkeys(directions, 1.0))
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.safetensors"
        bank.save(path)
        host = Host(path)
        for masked in (False, True):
            with_masks = ", a mask each" if masked else ""
            batch = host.new(REQUESTS, masked)
            host.fill(batch)
            for _ in range(options.rounds):
                times.setdefault(f"the same as before{with_masks}", []).append(host.fill(batch))
                batch[:: REQUESTS // 16] = host.new(16, masked)
                times.setdefault(f"one in sixteen new{with_masks}", []).append(host.fill(batch))
                batch = host.new(REQUESTS, masked)
                times.setdefault(f"all new{with_masks}", []).append(host.fill(batch))
    results = [Result(CASE, side, "", found, []) for side, found in times.items()]
    print(summary(results))
    print(save("vllm_host", results))


if __name__ == "__main__":
    main()
