"""What is known of the texts that a thread's passes continue: their prompts, and the programs given to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad

from emosteer.ops.tracing import is_exporting

from .addresses import fixed
from .prompts import Prompt

# Rows of a batch that there is room for under torch.compile.
CAPACITY = 4096
# Where the numbers stand in `Sequences.counts`.
ASSIGNED, PROMPTS, COLUMNS, STARTED, WHOLE = range(5)


def seen_through() -> bool:
    """Whether something follows what is computed that kernels hide it from: torch.func, forward-mode derivatives,
    torch.jit.trace.
    """
    return (
        torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or torch._C._is_tracing()
    )


class Sequences:
    """The prompts of a batch's rows, and the table rows assigned to them, for eager and traced code alike.

    Traced code reads the tensors, whose addresses never change, and so sees what was said after it was
    traced. Eager code knows the same on the host where that saves work on the device.

    Args:
        device: of the token ids.

    Attributes:
        prompt: of the `generate` call, or the `batch`, that is going on.
        assigned: int32 `[B]`, the table row of each row of the batch, or None: spread evenly.
        columns: columns of the pass that started the sequences, where the host knows.
        counts: int64 `[5]`: rows assigned; prompts, and their columns; sequences started; whether each
            prompt is one run of tokens, without holes.
        rows: int32 `[CAPACITY]`, what was assigned.
        first, length: int64 `[CAPACITY]`, of each prompt: its first token's column, its tokens.
        started: int64 `[CAPACITY]`, tokens of the pass that started each sequence in the cache.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):
            self.counts = fixed(torch.zeros(5, dtype=torch.int64, device=device))
            self.rows = fixed(torch.full((CAPACITY,), -1, dtype=torch.int32, device=device))
            self.first, self.length, self.started = (
                fixed(torch.zeros(CAPACITY, dtype=torch.int64, device=device)) for _ in range(3)
            )
        self.prompt: Prompt | None = None
        self.assigned: Tensor | None = None
        self.columns: int | None = None
        self._said: list[object] = []

    @property
    def device(self) -> torch.device:
        return self.counts.device

    @torch.no_grad()
    def say(self, prompt: Prompt | None, assigned: Tensor | None) -> None:
        """Note what the coming passes are about; None for what is not known.

        Raises:
            ValueError: more rows than there is room for.
        """
        for what, many in (
            ("prompts", prompt and len(prompt.mask)),
            ("rows", assigned is not None and len(assigned)),
        ):
            if many and many > CAPACITY:
                raise ValueError(f"{many} {what} in one batch; there is room for {CAPACITY}: split the batch")
        self.columns = None
        self.assigned, self.prompt = None, None
        for at in range(5):  # one by one: a kernel's argument each, where a list would be a copy that waits
            self.counts[at].fill_(0)
        if assigned is not None:
            here = assigned.to(torch.int32)
            if self.device.type == "cuda" and here.device.type == "cpu":
                here = here.pin_memory()
            self.rows[: len(here)].copy_(here, non_blocking=True)
            self.counts[ASSIGNED].fill_(len(here))
            self.assigned = self.rows[: len(here)]
        if prompt is not None:
            mask = prompt.mask.to(self.device)
            self.prompt, self.columns = Prompt(mask), prompt.columns
            many, length = len(mask), mask.sum(1)
            first = mask.to(torch.uint8).argmax(1)
            last = prompt.columns - 1 - mask.flip(1).to(torch.uint8).argmax(1)
            self.first[:many].copy_(first)
            self.length[:many].copy_(length)
            self.counts[PROMPTS].fill_(many)
            self.counts[COLUMNS].fill_(prompt.columns)
            self.counts[WHOLE].copy_(((last - first + 1 == length) | (length == 0)).all())

    @contextmanager
    def saying(self, prompt: Prompt | None, assigned: Tensor | None) -> Iterator[None]:
        """`say` for the passes inside; what was said before holds again after them.

        Raises:
            RuntimeError: something else was said in between and holds still: two tasks of one thread run into
                each other, and the passes inside may have been taken for the other's.
        """
        mine = object()
        self._said.append(mine)
        host = self.prompt, self.assigned, self.columns
        tensors = (self.counts, self.rows, self.first, self.length, self.started)
        before = [tensor.clone() for tensor in tensors]
        try:
            self.say(prompt, assigned)
            yield
            if self._said[-1] is not mine:
                raise RuntimeError(
                    "another steering.batch() was entered in this thread and is not left yet: two tasks of one "
                    "thread (asyncio) steer each other's passes. Give each a thread of its own, which enters "
                    "batch() itself, or do not wait for anything inside batch()"
                )
        finally:
            self._said.remove(mine)
            self.prompt, self.assigned, self.columns = host
            with torch.no_grad():
                for tensor, value in zip(tensors, before):
                    tensor.copy_(value)

    def begin(self, length: Tensor) -> None:
        """Note that sequences start with so many tokens `[B]`."""
        if is_exporting() or (not torch.compiler.is_compiling() and seen_through()):
            return  # what is exported starts its sequences anew; torch.func forbids to write into what lies outside
        batch = length.shape[0]
        if batch > CAPACITY:
            raise ValueError(f"{batch} rows in one batch; there is room for {CAPACITY}: split the batch")
        self.started[:batch].copy_(length)
        self.counts[STARTED].fill_(batch)
