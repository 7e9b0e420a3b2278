"""What has been read of each request, kept by vLLM's scheduler until the request ends; and the alarm that ends it.

The scheduler is told of the readings of a pass with its sampled tokens. A place that is computed again, after a
preemption, and a draft that was rejected do not count; what ends a request is its status, as with a stop token, so
all that vLLM does then it does here.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import numpy as np

from .asking import Asked
from .deployment import Deployment
from .placed_reads import PlacedReads
from .reads import READ
from .token_reads import ATTRIBUTE, Found

# The entry of `kv_transfer_params`, which vLLM carries from the scheduler to outputs and HTTP responses.
ENTRY = "emosteer"


class Ledger:
    """The readings of one request.

    Args:
        reads: what is read.
        prompt: tokens that count as its prompt.

    Attributes:
        alarm: the reading that passed its bound first, `{"concept", "layer", "place", "reading"}`; None: none has.
    """

    def __init__(self, reads: PlacedReads, prompt: int) -> None:
        self._reads, self._prompt = reads, prompt
        self._next = 0
        self._places: list[int] = []
        self._values: list[np.ndarray] = []
        self._count, self._total = 0, np.zeros(len(reads.bounds))
        self._most = np.full(len(reads.bounds), -np.inf)
        self.alarm: dict[str, Any] | None = None

    def take(self, places: np.ndarray, values: np.ndarray, end: int) -> None:
        """A pass has read so much; places from `end` on are of drafts that were rejected, or came after the end."""
        new = (places >= self._next) & (places < end)
        if not new.any():
            return
        self._next = int(places[new][-1]) + 1
        new &= self._reads.places(places, self._prompt)
        if not new.any():
            return
        places, values = places[new], values[new]
        if self._reads.asked.fold == "each":
            self._places += places.tolist()
            self._values.append(values)
        self._count += len(values)
        self._total += values.sum(0)
        self._most = np.maximum(self._most, values.max(0))
        over = self.over(places, values)
        if self.alarm is None and over is not None:
            self.alarm = over

    def over(self, places: np.ndarray, values: np.ndarray, end: int | None = None) -> dict[str, Any] | None:
        """The first reading before a place that passes its bound, among what is read; None: none does."""
        reads = self._reads
        passed = (values > reads.bounds) & reads.places(places, self._prompt)[:, None]
        if end is not None:
            passed &= (places < end)[:, None]
        if not passed.any():
            return None
        k, item = (int(index[0]) for index in passed.nonzero())
        concepts = reads.asked.concepts
        return {
            "concept": concepts[item % len(concepts)],
            "layer": reads.layers[item // len(concepts)],
            "place": int(places[k]),
            "reading": float(values[k, item]),
        }

    def plain(self) -> dict[str, Any]:
        """What was read, as JSON can hold it (`emosteer.vllm.readings` reads it)."""
        reads, fold = self._reads, self._reads.asked.fold
        shape = len(reads.layers), len(reads.asked.concepts)
        found: dict[str, Any] = {
            "concepts": list(reads.asked.concepts),
            "layers": list(reads.layers),
            "unit": reads.asked.unit,
            "as": fold,
            "count": self._count,
        }
        if fold == "each":
            values = np.concatenate(self._values) if self._values else np.zeros((0, shape[0] * shape[1]))
            found["places"] = self._places
            found["values"] = _plain(values.T.reshape(*shape, -1))
        elif fold == "sum" or self._count:
            whole = {"sum": self._total, "mean": self._total / max(self._count, 1), "max": self._most}[fold]
            found["values"] = _plain(whole.reshape(shape))
        else:  # the mean or the largest of nothing
            found["values"] = None
        if reads.asked.stop_at:
            found["alarm"] = self.alarm
        return found


def _plain(values: np.ndarray) -> Any:
    """Lists of numbers, of which JSON knows only finite ones."""
    held = values.astype(object)
    held[~np.isfinite(values)] = None
    return held.tolist()


def keep(scheduler: Any, deployment: Deployment) -> None:
    """Have a scheduler keep what is read of its requests, and end those whose alarm has gone off."""
    missing = [
        name
        for name in ("update_from_output", "_update_request_with_output", "_free_request")
        if not hasattr(scheduler, name)
    ]
    if missing:
        raise RuntimeError(
            f"this build of vLLM schedules with {type(scheduler).__name__}, which has no {missing[0]!r}; emosteer does "
            f"not know it: start the engine without the setting readable"
        )
    update, append, free = (
        scheduler.update_from_output,
        scheduler._update_request_with_output,
        scheduler._free_request,
    )
    ledgers: dict[str, Ledger] = {}
    told: dict[str, Found] = {}

    def ledger_of(request: Any) -> Ledger:
        found = ledgers.get(request.request_id)
        if found is None:
            asked = Asked.of(request.sampling_params.extra_args)
            reads = None if asked is None else deployment.reads(asked)
            assert asked is not None
            assert reads is not None
            found = ledgers[request.request_id] = Ledger(reads, asked.prompt or request.num_prompt_tokens)
        return found

    @wraps(update)
    def update_from_output(scheduled: Any, output: Any) -> Any:
        told.clear()
        told.update(getattr(output, ATTRIBUTE, None) or {})
        sampled = output.sampled_token_ids
        for name, found in list(told.items()):
            request = scheduler.requests.get(name)
            if request is None or request.is_finished():
                continue
            if request.num_stale_output_tokens and request.drop_stale_output:
                continue
            if not sampled or not sampled[output.req_id_to_index[name]]:  # a part of the prompt
                ledger_of(request).take(*found, request.num_tokens)
        return update(scheduled, output)

    @wraps(append)
    def update_request_with_output(request: Any, new: list[int], *args: Any, **kwargs: Any) -> Any:
        from vllm.v1.request import RequestStatus

        found = told.get(request.request_id)
        if found is None:
            if READ in (request.sampling_params.extra_args or ()):  # it would go on unread, and unstopped
                raise RuntimeError(f"a pass of request {request.request_id} came back without its readings")
            return append(request, new, *args, **kwargs)
        ledger, before = ledger_of(request), request.num_tokens
        # The token at a place is drawn from the stream at the place before it.
        over = ledger.alarm or ledger.over(*found, before + len(new) - 1)
        if over is not None:
            del new[max(over["place"] + 2 - before, 1) :]
        new, stopped = append(request, new, *args, **kwargs)
        ledger.take(*found, request.num_tokens - 1)
        if ledger.alarm is not None and not stopped:
            alarm = ledger.alarm
            request.status, stopped = RequestStatus.FINISHED_STOPPED, True
            request.stop_reason = (
                f"emosteer: {alarm['concept']} {alarm['reading']:.4g} at layer {alarm['layer']}"
            )
        return new, stopped

    @wraps(free)
    def free_request(request: Any, *args: Any, **kwargs: Any) -> Any:
        parameters, others = free(request, *args, **kwargs)
        ledger = ledgers.pop(request.request_id, None)
        if ledger is not None:
            parameters = {**(parameters or {}), ENTRY: ledger.plain()}
        return parameters, others

    scheduler.update_from_output = update_from_output
    scheduler._update_request_with_output = update_request_with_output
    scheduler._free_request = free_request
