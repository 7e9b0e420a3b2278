"""A sweep of a tiny model in a process that may be killed at any moment; imported once, forked often."""

import os
import signal
from pathlib import Path

import torch

import emosteer as es
from tests.conftest import byte_tokenizer
from tests.steering.conftest import random_bank

torch.set_num_threads(1)


def tiny():
    """`(model, tokenizer)`: two random blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tok = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tok), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval(), tok


def judge(text):
    if "a" in text:
        raise ValueError("an a")
    return len(text)


def sweep(**changed):
    model, tok = tiny()
    usual = dict(
        bank=random_bank(model),
        tok=tok,
        prompts=[f"number {n} is" for n in range(12)],
        strengths=(0.2, 0.4),
        layers=[[0]],
        metrics=[es.metrics.choices(["A", "B"]), es.metrics.judge(judge, version="1")],
        generation={"max_new_tokens": 4},
        batch_rows=8,
        batch_tokens=128,
    )
    return es.Sweep(model, **{**usual, **changed})


def run(folder, log, stops=False):
    """Run into a folder; each row that is reported done is noted in a log, after the fact.

    With `stops`, the process stops (it does not end) after the first part.
    """
    from emosteer.sweep import Store

    append = Store.append

    def noted(self, rows):
        name = append(self, rows)
        lines = "".join(f"{row.unit.id} {row.metric_id}\n" for row in rows)
        noted_in = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(noted_in, lines.encode())
        os.close(noted_in)
        if stops:
            os.kill(os.getpid(), signal.SIGSTOP)
        return name

    Store.append = noted
    sweep().run(folder, progress=False, flush_seconds=0.0)


def run_on_a_small_disk(folder, log, most):
    """The same where no file may grow beyond so many bytes; the error goes to the log."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    try:
        sweep().run(folder, progress=False, flush_seconds=0.2)
    except Exception as error:
        Path(log).write_text(f"{type(error).__name__}: {error}"[:most])


def run_with_little_memory(folder, log, spare):
    """With so many bytes of address space beyond what is used now, and batches that want more."""
    import resource

    sweep().run(folder.with_name("before"), progress=False)  # what is loaded late is loaded now
    prompts = ["a" * n for n in range(300, 420, 10)]
    one = sweep(prompts=prompts, batch_rows=1024, batch_tokens=1 << 22)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, before[1]))
    runner = one.runner()
    one.runner = lambda: runner
    found = one.run(folder, progress=False)
    resource.setrlimit(resource.RLIMIT_AS, before)
    Path(log).write_text(f"{runner.budget.tokens} {found.status().failed}")
