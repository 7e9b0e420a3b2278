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
from ..local.pool import ends_of
from ..progress import SweepProgress
from ..work import Work, failed_rows, rows_of
from ..writer import write_rows
from .asked import Asked, at_once, behind_prompt, looking_back, requests_of
from .banks import Banks
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

    Units of all programs, layers and positions share vLLM's batches and its compiled model; `emosteer.vllm` steers and
    reads them.

    Args:
        sweep: what says which model vLLM loads.
        options: arguments of `vllm.EngineArgs`: tensor_parallel_size, max_model_len, max_num_seqs,
            gpu_memory_utilization, enforce_eager, kv_cache_memory_bytes (on a CPU 1 GiB unless given) and more.

    Raises:
        ImportError: vLLM is not installed.
        ValueError: an option that vLLM does not know, a model that is not loaded by name, a mask over positions.
        RuntimeError: vLLM does not start, cannot steer this model, or has ended, and why.
        FolderError: the folder cannot be written to.
    """
    if sweep.name is None:
        raise ValueError(
            'engine "vllm" loads the model itself: give Sweep(model=…) the name of one (a folder, a GGUF file, a '
            'Hub id), not a loaded model; save_pretrained(folder) writes one, or use engine="local"'
        )
    masks = [label for label in sweep.position_labels if label.startswith("mask:")]
    if masks:
        raise ValueError(
            f'engine "vllm" takes positions in words or as slices, got {masks[0]!r}; use a slice such as "2:5", or '
            f'engine="local"'
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
        depth = find_decoder(runner.model).depth
        metrics = ready_metrics(sweep.metrics, sweep.bank, depth)
        layers = sorted({layer for one in sweep.layer_sets(depth) for layer in one})
        self.banks = Banks(runner.bank, tuple(layers), tuple(m for m in metrics if isinstance(m, Readings)))
        self._slots = max([MIN_SLOTS, *(len(arm.program.slots) for arm in sweep.arms)])
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
                    self.banks,
                    self._slots,
                    self.generation,
                    self._options,
                )
            )
        return self._server

    def rows(self, works: Iterable[Work]) -> Iterator[list[Row]]:
        """The rows of each unit as it is finished."""
        proven = False
        for work in works:
            if not work.needs_model:
                yield self.runner.from_text(work)
                continue
            if (why := self.runner.too_long(work)) is not None:
                yield failed_rows(work, ValueError(why), self.generation)
                continue
            if not proven and work.unit.program.slots:
                while self._asked:  # nothing else may come back in between
                    yield from self._hear()
                prove(self.server, self.runner, work, self._slots)
                proven = True
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
