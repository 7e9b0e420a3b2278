"""A steered model as one artifact: `torch.export` with the steering table among the inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .ops import SteerTable, formula
from .steering import Steering


def exportable(steering: Steering) -> Exportable:
    """A module to export while `steering` is attached: `forward(table, **inputs)`, the table as a tensor.

        with es.steer(model, bank, programs, layers="all") as steering:
            module = es.exportable(steering)
            inputs = {"input_ids": ids, "attention_mask": mask}
            program = torch.export.export(module, (module.table,), inputs, strict=False)
        torch.export.save(program, "steered.pt2")

    What runs later needs no emosteer: the update is in the graph as plain operations, the directions are
    constants of it, and each row of the table is the record that `SteerTable` documents. Tables for other
    programs are made where emosteer is (`steering.set(…)`, then `module.table`), and passed in elsewhere.

    Args:
        steering: attached, with at most `ops.formula.MAX_SLOTS` slots a row.

    Raises:
        RuntimeError: it is not attached.
        ValueError: more slots than a formula has.
    """
    return Exportable(steering)


class Exportable(nn.Module):
    """What `exportable` returns.

    Attributes:
        model: the steered model.
    """

    def __init__(self, steering: Steering) -> None:
        super().__init__()
        if not steering.attached:
            raise RuntimeError("the steering is not attached; export inside `with es.steer(…) as steering:`")
        if steering.table.slots > formula.MAX_SLOTS:
            raise ValueError(
                f"the table has {steering.table.slots} slots a row, a model is exported with at most "
                f"{formula.MAX_SLOTS}; pass slots={formula.MAX_SLOTS} or fewer to es.steer"
            )
        self.model = steering.model
        self._steering = steering

    @property
    def table(self) -> Tensor:
        """int32 `[at least R, W]`: a copy of the table's records, idle rows included."""
        return self._steering.records.clone()

    def forward(self, table: Tensor, **inputs: Any) -> Tensor:
        """The model's logits (or its first output) for its own inputs, steered by a table of records."""
        with self._steering.reading(SteerTable.of_record(table, self._steering.table.slots)):
            output = self.model(**inputs, use_cache=False)
        found = output.logits if hasattr(output, "logits") else output[0]
        assert isinstance(found, torch.Tensor)  # of any model that can be steered
        return found
