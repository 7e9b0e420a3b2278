"""What was read of a request, from its answer: in Python and over HTTP the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ledger import ENTRY


@dataclass(frozen=True)
class Readings:
    """What was read.

    Attributes:
        concepts, layers: what and where.
        unit: "z" or "projection".
        fold: "each", "sum", "mean" or "max".
        count: tokens that were read.
        places: of each of them in the text, counted from 0; empty unless `fold` is "each".
        values: float64 `[layers, concepts]`, with `[…, tokens]` behind where `fold` is "each"; NaN where a number was
            not finite, or where there was no token to take the mean or the largest of.
        alarm: the reading that ended the request, `{"concept", "layer", "place", "reading"}`; None: none has.
    """

    concepts: tuple[str, ...]
    layers: tuple[int, ...]
    unit: str
    fold: str
    count: int
    places: tuple[int, ...]
    values: np.ndarray
    alarm: Mapping[str, Any] | None

    def of(self, concept: str, layer: int | None = None) -> Any:
        """The reading of a concept, or float64 `[tokens]` of them; `layer` where several were read.

        Raises:
            ValueError: it was not read, or at several layers.
        """
        if concept not in self.concepts:
            raise ValueError(f"concept {concept!r} was not read, only {', '.join(self.concepts)}")
        if layer is None and len(self.layers) > 1:
            raise ValueError(f"layer must say which of {list(self.layers)}")
        if layer is not None and layer not in self.layers:
            raise ValueError(f"layer {layer} was not read, only {list(self.layers)}")
        at = 0 if layer is None else self.layers.index(layer)
        return self.values[at, self.concepts.index(concept)]


def readings(answer: Any) -> Readings:
    """What was read of a request, from its answer.

    Args:
        answer: a `RequestOutput` of vLLM that has finished, or a response of its server: an object of OpenAI's
            client or the JSON as a dict. Of a stream the chunk with the finish reason, or what the event
            `response.completed` holds; of a completion of several prompts a choice.

    Raises:
        ValueError: the answer holds no readings: none were asked for, or it is not the end of one.
    """
    held = (
        answer.get("kv_transfer_params")
        if isinstance(answer, Mapping)
        else getattr(answer, "kv_transfer_params", None)
    )
    found = held.get(ENTRY) if isinstance(held, Mapping) else None
    if found is None:
        raise ValueError(
            "the answer holds no readings; ask for them with emosteer.vllm.params(read=…), and take the finished "
            "answer: of a stream the chunk that has a finish reason"
        )
    shape: tuple[int, ...] = len(found["layers"]), len(found["concepts"])
    if found["as"] == "each":
        shape = *shape, found["count"]
    values = np.full(shape, np.nan)
    if found["values"] is not None:
        values[...] = np.array(found["values"], dtype=np.float64).reshape(shape)
    return Readings(
        tuple(found["concepts"]),
        tuple(found["layers"]),
        found["unit"],
        found["as"],
        found["count"],
        tuple(found.get("places", ())),
        values,
        found.get("alarm"),
    )
