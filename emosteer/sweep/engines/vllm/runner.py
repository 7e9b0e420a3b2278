"""A runner of units whose model is in vLLM: keeps its queue filled with their requests, makes rows of the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from emosteer.models.loading import folder_of
from emosteer.steering import MIN_SLOTS

from ...definition import Definition
from ...metrics.base import Seen
from ...metrics.reading import Readings, ready_metrics
from ...metrics.row import Row
from ..local import Runner
from ..local.pool import ends_of
from ..work import Work, failed_rows, rows_of
from .asked import Asked, at_once, behind_prompt, looking_back, requests_of
from .banks import Banks
from .proof import prove
from .server import Ended, Server, serving

# Units that are out at a time, in rows of vLLM's batches: some run, the others wait.
QUEUE = 2


@dataclass(frozen=True)
class Started:
    """What vLLM is started with, plain enough to be sent to another machine.

    Attributes:
        name: of the model, as `es.load` takes it.
        revision: of a Hub id.
        dtype: of the weights, as torch calls it.
        layers: where any program acts.
        metrics: those that read.
        slots: directions that a program combines at most.
        options: arguments of `vllm.EngineArgs`.
    """

    name: str
    revision: str | None
    dtype: str
    layers: tuple[int, ...]
    metrics: tuple[Readings, ...]
    slots: int
    options: Mapping[str, Any]

    @classmethod
    def of(cls, sweep: Definition, depth: int, options: Mapping[str, Any]) -> Started:
        """Of a sweep, on a model of so many blocks.

        Raises:
            ValueError: a model that is not loaded by name.
        """
        if sweep.name is None:
            raise ValueError(
                'engine "vllm" loads the model itself: give Sweep(model=…) the name of one (a folder, a GGUF file, a '
                'Hub id), not a loaded model; save_pretrained(folder) writes one, or use engine="local"'
            )
        metrics = ready_metrics(sweep.metrics, sweep.bank, depth)
        return cls(
            name=sweep.name,
            revision=sweep.revision,
            dtype=str(sweep.dtype or torch.float32).removeprefix("torch."),
            layers=tuple(sorted({layer for one in sweep.layer_sets(depth) for layer in one})),
            metrics=tuple(m for m in metrics if isinstance(m, Readings)),
            slots=max([MIN_SLOTS, *(len(arm.program.slots) for arm in sweep.arms)]),
            options=dict(options),
        )


class VllmRunner:
    """Runs units like `local.Runner`, in vLLM, which batches, schedules and pages.

    Units of all programs, layers and positions share vLLM's batches and its compiled model; `emosteer.vllm` steers and
    reads them. The rows are those of the local engine.

    Args:
        runner: of the same model in transformers, which vLLM's is proved against; it makes tokens and texts too.
        started: what vLLM is started with, at the first request or when `server` is asked for.
        until_done: closes vLLM when it is left.
    """

    def __init__(self, runner: Runner, started: Started, until_done: ExitStack) -> None:
        self.runner, self.generation, self.tok = runner, runner.generation, runner.tok
        self._started, self._until_done = started, until_done
        self._ends = ends_of(runner.model)
        self.banks = Banks(runner.bank, started.layers, started.metrics)
        self._server: Server | None = None
        self._proven = False
        self._asked: dict[str, Asked] = {}

    @property
    def server(self) -> Server:
        """vLLM, started when there is something to ask."""
        if self._server is None:
            started = self._started
            self._server = self._until_done.enter_context(
                serving(
                    folder_of(started.name, dtype=getattr(torch, started.dtype)),
                    started.revision,
                    started.dtype,
                    self.banks,
                    started.slots,
                    self.generation,
                    dict(started.options),
                )
            )
        return self._server

    def run(self, works: Iterable[Work]) -> Iterator[list[Row]]:
        """The rows of each unit as it is finished.

        Raises:
            RuntimeError: vLLM does not start, cannot steer this model, or has ended (`Ended`), and why.
        """
        for work in works:
            if not work.needs_model:
                yield self.runner.from_text(work)
                continue
            if (why := self.runner.too_long(work)) is not None:
                yield failed_rows(work, ValueError(why), self.generation)
                continue
            if not self._proven and work.unit.program.slots:
                while self._asked:  # nothing else may come back in between
                    yield from self._hear()
                prove(self.server, self.runner, work, self._started.slots)
                self._proven = True
            yield from self._ask(work)
            while len(self._asked) >= QUEUE * self.server.rows:
                yield from self._hear()
        while self._asked:
            yield from self._hear()

    def _ask(self, work: Work) -> Iterator[list[Row]]:
        asked = Asked(work, Seen(work.unit))
        self._asked[work.unit.id] = asked
        ids = {c: self.runner.ids(c) for c in work.continuations}
        try:
            for kind, tokens, params in requests_of(work, ids, self.generation, self.runner.relative):
                if work.generates and kind == "ahead:0":
                    params["stop_token_ids"] = sorted(self._ends)
                self._send(asked, kind, tokens, params)
            if work.tokens is not None:
                self._written(asked, list(work.tokens))
        except Exception as error:
            yield self._failed(asked, error)
            return
        yield from self._finished(asked)

    def _send(self, asked: Asked, kind: str, tokens: list[int], params: dict[str, Any]) -> None:
        id = f"{asked.work.unit.id}:{kind}"
        self.server.ask(id, tokens, **params)
        asked.out.add(id)

    def _hear(self) -> Iterator[list[Row]]:
        for answer in self.server.answers():
            unit, _, kind = answer.request_id.partition(":")
            asked = self._asked.get(unit)
            if asked is None:  # of a unit that has failed
                continue
            asked.out.discard(answer.request_id)
            try:
                self._take(asked, kind, answer)
            except Exception as error:
                yield self._failed(asked, error)
                continue
            yield from self._finished(asked)

    def _take(self, asked: Asked, kind: str, answer: Any) -> None:
        work, seen = asked.work, asked.seen
        ended = answer.outputs[0].finish_reason
        if ended not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended the request with {ended!r}")
        prompt = len(work.unit.prompt.tokens)
        if kind == "back":
            seen.text_log_probabilities = behind_prompt(answer, prompt)
            if self.runner.readings(work):
                seen.projections.update(self.banks.projections(answer))
        elif kind.startswith("tail:"):
            continuation = work.continuations[int(kind.removeprefix("tail:"))]
            seen.continuations[continuation] = behind_prompt(answer, prompt)
        else:
            known = at_once(answer)
            for continuation in work.continuations:
                own = self.runner.ids(continuation)
                if len(own) == 1 and own[0] in known:
                    seen.continuations[continuation] = torch.tensor([known[own[0]]])
            if work.generates and kind == "ahead:0":
                tokens = list(answer.outputs[0].token_ids)
                self._written(asked, tokens[:-1] if tokens[-1] in self._ends else tokens)

    def _written(self, asked: Asked, tokens: list[int]) -> None:
        """The text is there; the unsteered model looks back at it if a metric wants that."""
        asked.seen.tokens = tuple(tokens)
        asked.seen.text = self.tok.decode(tokens, skip_special_tokens=True)
        if asked.work.looks_back and tokens:
            self._send(asked, *looking_back(asked, self.banks, bool(self.runner.readings(asked.work))))

    def _finished(self, asked: Asked) -> Iterator[list[Row]]:
        if not asked.out:
            del self._asked[asked.work.unit.id]
            yield rows_of(asked.work, asked.seen, self.generation)

    def _failed(self, asked: Asked, error: Exception) -> list[Row]:
        if isinstance(error, Ended):  # not the unit's fault
            raise error
        self.server.abort(asked.out)
        del self._asked[asked.work.unit.id]
        return failed_rows(asked.work, error, self.generation)
