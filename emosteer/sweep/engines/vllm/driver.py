"""The driver: keeps vLLM's queue filled with requests of units, and makes rows of the answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch

from emosteer.models.blocks import find_decoder
from emosteer.models.loading import folder_of
from emosteer.steering import MIN_SLOTS

from ...definition import Definition
from ...metrics.base import Seen
from ...metrics.reading import Readings, ready_metrics
from ...metrics.row import Row
from ...store import Store
from ..local import Runner
from ..local.held_rows import HeldRows
from ..local.pool import ends_of
from ..local.steered import Steered
from ..places import by_place
from ..progress import SweepProgress
from ..work import Work, failed_rows, rows_of
from ..writer import write_rows
from .asked import Asked, at_once, behind_prompt, looking_back, requests_of
from .proof import prove
from .server import Ended, Server, serving

# Units that are out at a time, in rows of vLLM's batches: some run, the others wait.
QUEUE = 2


def run_vllm(
    runner: Runner,
    works: Iterable[Work],
    store: Store,
    progress: SweepProgress,
    *,
    flush_seconds: float | None,
    sweep: Definition,
    **options: Any,
) -> None:
    """One model in vLLM, which batches, schedules and pages; on an error what is finished is written first.

    vLLM runs eagerly, and shares keys and values only between requests of one program.

    Args:
        sweep: what says which model vLLM loads.
        options: arguments of `vllm.EngineArgs`: tensor_parallel_size, max_model_len, max_num_seqs,
            gpu_memory_utilization, kv_cache_memory_bytes (on a CPU 1 GiB unless given) and more.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: an option that vLLM does not know, a model that is not loaded by name.
        RuntimeError: vLLM does not start, cannot steer this model, or has ended, and why.
        FolderError: the folder cannot be written to.
    """
    if sweep.name is None:
        raise ValueError(
            'engine "vllm" loads the model itself: give Sweep(model=…) the name of one (a folder, a GGUF file, a '
            'Hub id), not a loaded model; save_pretrained(folder) writes one, or use engine="local"'
        )
    with ExitStack() as until_done:
        driver = _Driver(runner, sweep, sweep.name, options, until_done)
        write_rows(driver.rows(works), store, progress, flush_seconds)


class _Driver:
    def __init__(
        self, runner: Runner, sweep: Definition, name: str, options: dict[str, Any], until_done: ExitStack
    ) -> None:
        self.runner, self.generation, self.tok = runner, runner.generation, runner.tok
        self._sweep, self._name, self._options, self._until_done = sweep, name, options, until_done
        self._ends = ends_of(runner.model)
        metrics = ready_metrics(sweep.metrics, sweep.bank, find_decoder(runner.model).depth)
        self.readings = [metric for metric in metrics if isinstance(metric, Readings)]
        self._server: Server | None = None
        self._asked: dict[str, Asked] = {}

    @property
    def server(self) -> Server:
        """vLLM, started when there is something to ask."""
        if self._server is None:
            dtype = getattr(torch, str(self._sweep.dtype or torch.float32).removeprefix("torch."))
            self._server = self._until_done.enter_context(
                serving(
                    folder_of(self._name, dtype=dtype),
                    self._sweep.revision,
                    str(dtype).removeprefix("torch."),
                    self.runner.bank,
                    self.runner.relative,
                    self.generation,
                    self.readings,
                    self._options,
                )
            )
        return self._server

    def rows(self, works: Iterable[Work]) -> Iterator[list[Row]]:
        """The rows of each unit as it is finished."""
        slots = max([MIN_SLOTS, *(len(arm.program.slots) for arm in self._sweep.arms)])
        for (layers, positions), group in by_place(works):
            placed: HeldRows | None = None
            for work in group:
                if not work.needs_model:
                    yield self.runner.from_text(work)
                    continue
                if (why := self.runner.too_long(work)) is not None:
                    yield failed_rows(work, ValueError(why), self.generation)
                    continue
                if placed is None:
                    self.server.place(layers, positions, slots)
                    self._held = placed = HeldRows(self.server.set)
                    proven = False
                if not proven and work.unit.program.slots:
                    yield from self._prove(work, layers, positions, slots)
                    proven = True
                yield from self._ask(work)
                while len(self._asked) >= QUEUE * self.server.rows:
                    yield from self._hear()
            while self._asked:
                yield from self._hear()

    def _prove(self, work: Work, layers: tuple[int, ...], positions: str, slots: int) -> Iterator[list[Row]]:
        while self._asked:  # nothing else may come back in between
            yield from self._hear()
        runner, unit = self.runner, work.unit
        row = self._held.hold(unit.program)
        try:
            steered = Steered(runner.model, runner.bank, layers, positions, runner.relative, slots)
            prove(self.server, row, runner, steered, unit)
        finally:
            self._held.release(unit.program)

    def _ask(self, work: Work) -> Iterator[list[Row]]:
        asked = Asked(work, self._held.hold(work.unit.program), Seen(work.unit))
        self._asked[work.unit.id] = asked
        ids = {c: self.runner.ids(c) for c in work.continuations}
        try:
            for kind, tokens, salt, params in requests_of(asked, ids, self.generation):
                if work.generates and kind == "ahead:0":
                    params["stop_token_ids"] = sorted(self._ends)
                self._send(asked, kind, tokens, salt, params)
            if work.tokens is not None:
                self._written(asked, list(work.tokens))
        except Exception as error:
            yield self._failed(asked, error)
            return
        yield from self._finished(asked)

    def _send(self, asked: Asked, kind: str, tokens: list[int], salt: str, params: dict[str, Any]) -> None:
        id = f"{asked.work.unit.id}:{kind}"
        self.server.ask(id, tokens, salt, **params)
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
            self._read(asked)
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
            self._send(asked, *looking_back(asked, bool(self.runner.readings(asked.work))))

    def _read(self, asked: Asked) -> None:
        wanted = {metric.fingerprint for metric in self.runner.readings(asked.work)}
        if not wanted:
            return
        count = len(asked.seen.tokens or ())
        for metric, total in zip(self.readings, self.server.sums(asked.work.unit.id)):
            assert metric.bank is not None
            assert metric.layer is not None
            if metric.fingerprint in wanted:
                unit = metric.bank.scale.get(metric.layer, 1.0) * count
                asked.seen.projections[metric.fingerprint] = torch.tensor(total) / unit

    def _finished(self, asked: Asked) -> Iterator[list[Row]]:
        if not asked.out:
            self._leave(asked)
            yield rows_of(asked.work, asked.seen, self.generation)

    def _failed(self, asked: Asked, error: Exception) -> list[Row]:
        if isinstance(error, Ended):  # not the unit's fault
            raise error
        self.server.abort(asked.out)
        self._leave(asked)
        return failed_rows(asked.work, error, self.generation)

    def _leave(self, asked: Asked) -> None:
        del self._asked[asked.work.unit.id]
        self._held.release(asked.work.unit.program)
