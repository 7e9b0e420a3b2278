"""Run by torchrun in `test_extraction_robust`: extract with the texts shared out, and save this rank's bank."""

import sys
from pathlib import Path

import torch.distributed as dist

import emosteer as es
from tests.conftest import tiny_model
from tests.test_extraction import NEUTRAL, STORIES


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    bank = es.extract(*tiny_model(), STORIES, neutral=NEUTRAL, method="lda", batch_tokens=64, progress=False)
    bank.save(out / f"rank{dist.get_rank()}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
