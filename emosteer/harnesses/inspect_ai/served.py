"""A loaded, steered model that answers requests in batches; providers that want the same one share it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emosteer import spelling
from emosteer.bank import Bank
from emosteer.models.loading import load
from emosteer.models.patching import evaluating
from emosteer.models.scoring import device_of
from emosteer.programs import Program
from emosteer.steering import Steering, steer
from emosteer.sweep.engines.local.memory import out_of_memory
from emosteer.sweep.engines.local.pool import ends_of

from .batches import Batches
from .requests import Choice, Ends, Request


@dataclass(frozen=True)
class Wanted:
    """What tells whether two providers can share a model.

    Attributes:
        model, revision, dtype, device: for `es.load`.
        bank: the path of its file.
        layers, positions, relative, preserve_norm: of `es.steer`; a list of layers as a tuple.
        batch_size: requests in a batch at most, and rows of the steering table.
    """

    model: str
    bank: str
    layers: Any = "middle"
    positions: str = "all"
    relative: bool = False
    preserve_norm: bool = True
    device: str = "cpu"
    dtype: str = "float32"
    revision: str | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {size!r}")
        if not isinstance(getattr(torch, str(self.dtype), None), torch.dtype):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}")
        if not self.bank:
            raise ValueError("bank is missing; expected the path of a bank file (emosteer extract makes one)")


class Served:
    """The model, steered for as long as a provider has it; each request takes a row of the table.

    Attributes:
        batches: where requests come together.
        id: tells it from others across runs, with the content of the bank's file.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted, self.users = wanted, 0
        bank = Bank.load(wanted.bank)
        self.id = f"{wanted};{hashlib.sha256(Path(wanted.bank).read_bytes()).hexdigest()}"
        dtype = getattr(torch, wanted.dtype)
        self.model, self.tok = load(wanted.model, dtype=dtype, device=wanted.device, revision=wanted.revision)
        self.steering: Steering = steer(
            self.model,
            bank,
            [None] * wanted.batch_size,
            layers=list(wanted.layers) if isinstance(wanted.layers, tuple) else wanted.layers,
            positions=spelling.positions(wanted.positions),
            relative=wanted.relative,
            preserve_norm=wanted.preserve_norm,
        ).attach()
        self.batches = Batches(self.run, wanted.batch_size)
        self._ends = ends_of(self.model)

    @property
    def context(self) -> int | None:
        """Tokens that the model can have before it, None where its configuration does not say."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def check(self, program: Program) -> None:
        """Raise what is wrong with a program, before it would fail a batch.

        Raises:
            ValueError: a concept that the bank does not have, or more directions than a row holds.
        """
        for name in program.names:
            self.steering.bank.index(name)
        if len(program.slots) > self.steering.table.slots:
            raise ValueError(
                f"steer combines {len(program.slots)} directions, a row of the table holds "
                f"{self.steering.table.slots}: {program}"
            )

    def run(self, some: list[Request]) -> None:
        """Answer requests in one batch; in smaller ones where memory runs out."""
        try:
            self._run(some)
        except Exception as error:
            if len(some) == 1 or not out_of_memory(error):
                raise
            error.__traceback__ = None  # which holds what the batch had allocated
            middle = len(some) // 2
            self.run(some[:middle])
            self.run(some[middle:])

    def _run(self, some: list[Request]) -> None:
        device = device_of(self.model)
        width = max(len(request.tokens) for request in some)
        ids = torch.full((len(some), width), self.tok.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(some):
            ids[row, width - len(request.tokens) :] = torch.tensor(request.tokens)
            mask[row, width - len(request.tokens) :] = 1
            self.steering.set(row, request.program)
        ends = Ends(some, width, self.tok, self._ends)
        with self.steering.batch(range(len(some))), evaluating(self.model), torch.no_grad():
            made = self.model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max(request.generation.max_new_tokens for request in some),
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                pad_token_id=self.tok.pad_token_id,
                logits_processor=[Choice(some, width)],
                stopping_criteria=[ends],
            )
        for request, answer in zip(some, ends.answers(made)):
            request.answer = answer


_shared: dict[Wanted, Served] = {}


def served(wanted: Wanted) -> Served:
    """The model that is wanted, loaded if no provider has it; `release` as often."""
    wanted = Wanted(**{**vars(wanted), "bank": str(Path(wanted.bank).expanduser().resolve())})
    if wanted not in _shared:
        _shared[wanted] = Served(wanted)
    _shared[wanted].users += 1
    return _shared[wanted]


def release(one: Served) -> None:
    """A provider is done with its model; after the last one the model is let go."""
    one.users -= 1
    if not one.users:
        one.steering.detach()
        _shared.pop(one.wanted, None)
