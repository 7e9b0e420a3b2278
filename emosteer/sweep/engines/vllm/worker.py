"""What is added to vLLM's workers: methods that the driver calls in each of them, with plain data."""

from __future__ import annotations

from typing import Any

import torch

from emosteer.bank import Bank
from emosteer.programs import Program, Slot

from .stream import Stream


class SteeredWorker:
    """Extension of a vLLM worker (`worker_extension_cls`)."""

    model_runner: Any

    def emosteer_open(self, bank: str, relative: bool, readings: list[tuple[int, list[list[float]]]]) -> None:
        """Hook the model.

        Args:
            bank: path of the bank's file.
            relative: strengths are fractions of each token's own norm.
            readings: for each, a layer and the directions that the stream after it is projected on.
        """
        wanted = [(layer, torch.tensor(directions)) for layer, directions in readings]
        self._emosteer = Stream(self.model_runner, Bank.load(bank), relative, wanted)

    def emosteer_place(self, layers: list[int], positions: str, slots: int) -> None:
        """Steer there from now on, with an empty table."""
        self._emosteer.place(layers, positions, slots)

    def emosteer_set(self, row: int, slots: list[list[Any]], preserve_norm: bool | None) -> None:
        """Put a program into a row of the table."""
        self._emosteer.set(row, Program(tuple(Slot(*slot) for slot in slots), preserve_norm))

    def emosteer_sums(self, key: str) -> list[list[float]]:
        """For each reading the summed projections of what was read under a key."""
        return self._emosteer.sums(key)
