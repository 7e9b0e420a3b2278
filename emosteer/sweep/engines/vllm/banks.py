"""The banks of a sweep as vLLM is given them: one to steer with, one for all that metrics read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emosteer.bank import Bank
from emosteer.vllm import readings

from ...metrics.reading import Readings

# Their names.
STEER, READ = "sweep", "readings"


@dataclass(frozen=True)
class Banks:
    """What requests of a sweep steer and read with.

    Attributes:
        bank: the directions of programs.
        layers: where any of them acts.
        metrics: what is read, each with its bank and layer.
    """

    bank: Bank
    layers: tuple[int, ...]
    metrics: tuple[Readings, ...]

    @property
    def read(self) -> list[str]:
        """The names of all concepts that are read: metrics may have different directions for one of them."""
        return [f"{number} {c}" for number, metric in enumerate(self.metrics) for c in metric.concepts or ()]

    @property
    def readable(self) -> list[int]:
        """Where."""
        return sorted({metric.layer for metric in self.metrics if metric.layer is not None})

    def save(self, folder: Path) -> dict[str, Any]:
        """Write both, and return what `additional_config["emosteer"]` says of them."""
        files = {STEER: folder / "steer.safetensors"}
        self.bank.save(files[STEER])
        if self.metrics:
            # Without a mean and a unit of length: the metric has them of its own.
            directions = torch.cat([_directions(metric) for metric in self.metrics])
            files[READ] = folder / "read.safetensors"
            Bank(self.read, dict.fromkeys(self.readable, directions)).save(files[READ])
        return {
            "banks": {name: str(file) for name, file in files.items()},
            "layers": list(self.layers or self.bank.layers[:1]),
            "readable": self.readable or None,
        }

    def projections(self, answer: Any) -> dict[str, Tensor]:
        """The fingerprint of each metric → float32 `[K]`, from the answer to a request that reads."""
        found, first = readings(answer), 0
        read = {}
        for metric in self.metrics:
            assert metric.bank is not None
            assert metric.layer is not None
            count = len(metric.concepts or ())
            mean = found.values[found.layers.index(metric.layer), first : first + count]
            read[metric.fingerprint] = torch.from_numpy(
                mean / metric.bank.scale.get(metric.layer, 1.0)
            ).float()
            first += count
        return read


def _directions(metric: Readings) -> Tensor:
    assert metric.bank is not None
    assert metric.layer is not None
    return metric.bank.directions[metric.layer][[metric.bank.index(c) for c in metric.concepts or ()]].cpu()
