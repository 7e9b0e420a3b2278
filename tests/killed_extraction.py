"""Run in a process of its own by `test_extraction_robust`, which kills it: an extraction that waits for it."""

import sys
import time
from pathlib import Path

import emosteer as es
from emosteer.extraction.counting import Counting
from tests.conftest import tiny_model
from tests.test_extraction import NEUTRAL, STORIES


def main(checkpoint: Path, kill_at: int) -> None:
    count = Counting._count_batch

    def wait_for_the_end(self, batch, kind):
        count(self, batch, kind)
        if self.batches_done + 1 == kill_at:  # counted, but not saved yet
            print("now", flush=True)
            time.sleep(600)

    Counting._count_batch = wait_for_the_end
    es.extract(*tiny_model(), STORIES, neutral=NEUTRAL, batch_tokens=1, checkpoint=checkpoint, progress=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
