"""A sweep: what is asked, run into a folder, opened again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from emosteer.bank import Bank
from emosteer.models.blocks import find_decoder, resolve_layers
from emosteer.programs import Program

from . import metrics as kinds
from .arms import CONTROLS, arms_of, with_controls
from .definition import keywords, read_yaml
from .engines import engine as engine_of
from .entries import DefinitionError
from .generation import Generation
from .identity import model_id, positions_label, positions_of
from .manifest import bank_bytes, manifest_of
from .metrics import Metric
from .opened import Opened
from .plan import Plan, prompts_of
from .progress import SweepProgress
from .runner import Runner
from .runner.run import ready_metrics
from .runner.work import remaining
from .store import Store


class Sweep:
    """concepts × strengths × prompts × seeds × positions × layer sets, measured into a folder.

        sweep = es.Sweep("smollm2", bank=bank, prompts=["I feel"], strengths=(0.05, 0.1),
                         metrics=[es.metrics.choices([" good", " bad"])])
        table = sweep.run("out").table()

    The grid is streamed, never held. Each unit is hashed from what determines it, each metric apart:
    running into a folder that has rows goes on from there, and a changed metric runs no unit again whose
    text is kept.

    Args:
        model: a name for `es.load`, or a model; then `tok` is its tokenizer.
        tok: for a model.
        bank: a bank or the path of its file.
        prompts: texts, chats (lists of messages), or mappings with `text` or `messages` and a `label`.
        programs: concepts, each taken at every strength, and programs, taken as they are; None or "all":
            every concept of the bank.
        strengths: for concepts; 0 is the unsteered control.
        metrics: of `es.metrics`; names must differ.
        seeds: of sampled text; all programs of a prompt and seed share their random numbers.
        positions: one `positions` argument of `es.steer`, or a list of several; masks are 1-D.
        layers: one `layers` argument of `es.steer`, or a list of several sets.
        generation: how text is generated: `Generation`, or its fields as a mapping.
        controls: "unsteered", "random", both or none.
        random_directions: how many random directions; each takes every program and strength.
        control_seed: of the random directions.
        exclude: mappings of coordinates (concept, strength, control, prompt, seed, positions, layers) to
            leave out; a value may be a list of several.
        where: keeps a unit if it says so of its coordinates.
        relative: strengths are fractions of each token's own norm.
        revision, dtype, device: for `es.load`.
        batch_tokens, batch_rows: sizes of batches; None: what memory holds.

    Raises:
        TypeError, ValueError: names the argument.
    """

    def __init__(
        self,
        model: Any = "smollm2",
        *,
        bank: Bank | str | os.PathLike[str],
        prompts: Iterable[Any],
        metrics: Sequence[Metric],
        programs: Iterable[str | Program] | str | None = None,
        strengths: Sequence[float] = (),
        seeds: Sequence[int] = (0,),
        positions: Any = "all",
        layers: Any = "middle",
        generation: Generation | Mapping[str, Any] | None = None,
        controls: Sequence[str] = CONTROLS,
        random_directions: int = 4,
        control_seed: int = 0,
        exclude: Sequence[Mapping[str, Any]] = (),
        where: Callable[[dict[str, Any]], bool] | None = None,
        relative: bool = False,
        tok: Any = None,
        revision: str | None = None,
        dtype: Any = None,
        device: str = "cpu",
        batch_tokens: int | None = None,
        batch_rows: int | None = None,
    ) -> None:
        if not isinstance(model, (str, os.PathLike)) and tok is None:
            raise TypeError("tok is missing: a model that is no name needs its tokenizer, tok=…")
        self.model, self.tok = model, tok
        self.name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
        self.bank = bank if isinstance(bank, Bank) else Bank.load(bank)
        self.prompts = list(prompts)
        self.programs = (
            programs if programs is None or isinstance(programs, (str, Program)) else list(programs)
        )
        self.strengths = _numbers("strengths", strengths)
        self.seeds = _numbers("seeds", seeds, whole=True)
        self.positions = tuple(positions) if isinstance(positions, (list, tuple)) else (positions,)
        self.position_labels = tuple(positions_label(p) for p in self.positions)
        for label in self.position_labels:
            positions_of(label)
        self.layers = list(layers) if isinstance(layers, list) else [layers]
        self.generation = (
            generation if isinstance(generation, Generation) else Generation(**(generation or {}))
        )
        self.metrics = _metrics(metrics)
        self.controls, self.random_directions = tuple(controls), random_directions
        self.control_seed, self.exclude, self.where = control_seed, tuple(exclude), where
        self.relative, self.revision, self.dtype, self.device = relative, revision, dtype, device
        self.batch_tokens, self.batch_rows = batch_tokens, batch_rows
        arms = arms_of(self.bank, self.programs, self.strengths)
        self._bank, self.arms = with_controls(self.bank, arms, self.controls, random_directions, control_seed)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Sweep:
        """The sweep that a YAML file defines; its keys are this class's arguments.

        Raises:
            FileNotFoundError: no such file.
            DefinitionError: a ValueError that names the path of the key, such as `metrics[2].choices.options`.
        """
        file = Path(path)
        try:
            return cls(**keywords(read_yaml(file), file.parent))
        except DefinitionError as error:
            raise DefinitionError(f"{file}: {error}") from None

    @staticmethod
    def open(folder: str | os.PathLike[str]) -> Opened:
        """The results in a folder: `.table()`, `.status()`, `.summary()`.

        Raises:
            FileNotFoundError: no folder of a sweep.
        """
        return Opened(Store(folder))

    def load(self) -> tuple[Any, Any]:
        """The model and its tokenizer; loaded at the first call."""
        if self.tok is None:
            import torch

            from emosteer.models.loading import load

            dtype = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
            self.model, self.tok = load(
                self.model, dtype=dtype or torch.float32, device=self.device, revision=self.revision
            )
        return self.model, self.tok

    def plan(self) -> Plan:
        """The units of the sweep, as a stream."""
        model, tok = self.load()
        depth = find_decoder(model).depth
        return Plan(
            model_id(model, tok),
            self._bank,
            prompts_of(tok, self.prompts),
            self.arms,
            seeds=self.seeds,
            positions=self.positions,
            layers=[_layers(one, depth, self.bank) for one in self.layers],
            exclude=self.exclude,
            where=self.where,
            relative=self.relative,
        )

    def runner(self) -> Runner:
        """What runs the sweep's units."""
        model, tok = self.load()
        return Runner(
            model,
            tok,
            self._bank,
            self.generation,
            relative=self.relative,
            batch_tokens=self.batch_tokens,
            batch_rows=self.batch_rows,
        )

    def run(
        self,
        folder: str | os.PathLike[str],
        engine: str = "local",
        *,
        retry_failed: bool = False,
        progress: bool = True,
        flush_seconds: float | None = None,
        **options: Any,
    ) -> Opened:
        """Run what is not yet done into a folder.

        Args:
            folder: local path or fsspec URL; new, empty, or of a sweep.
            engine: "local", "ray" for the workers of a Ray cluster, or "vllm" for vLLM's own batches.
            retry_failed: run rows again that failed before.
            progress: show units done, units a second, time left and failures.
            flush_seconds: between two parts; None: 2 s at first, up to a minute in long runs.
            options: of the engine; those of "ray" are listed at `ray_engine.run_ray`: num_workers,
                cpus_per_worker, gpus_per_worker, resources, address and more; those of "vllm" are
                arguments of `vllm.EngineArgs`: tensor_parallel_size, max_model_len and more.

        Returns:
            the folder, opened.

        Raises:
            ValueError, ImportError: an engine that cannot be used, and why.
            FolderError: another runner has the folder, or it cannot be written to; what was reported
                done is safe.
        """
        carry_out = engine_of(engine)
        store = Store(folder)
        with store.running():
            plan = self.plan()
            metrics = ready_metrics(self.metrics, self.bank, find_decoder(self.model).depth)
            runner = self.runner()
            for continuation in (c for metric in metrics for c in metric.continuations):
                runner.ids(continuation)  # one without a token is told now, not by every unit
            if retry_failed:
                store.forget_failed()
            done = store.done()
            store.write_bank(bank_bytes(self.bank))
            total = sum(1 for _ in plan) if self.exclude or self.where else plan.size
            store.write_manifest(manifest_of(self, plan, metrics, total))
            text_id = next((m.id(self.generation) for m in metrics if m.kind == "text"), None)
            with SweepProgress(total, show=progress) as bar:
                works = remaining(plan, metrics, self.generation, done, text_id, skipped=bar.skipped)
                if engine != "local":  # its workers load the model themselves
                    options["sweep"] = self
                carry_out(runner, works, store, bar, flush_seconds=flush_seconds, **options)
        return Opened(store)


def _numbers(name: str, given: Any, *, whole: bool = False) -> tuple[Any, ...]:
    found = (given,) if isinstance(given, (int, float)) else tuple(given)
    for number, value in enumerate(found):
        right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not right or not math.isfinite(value):
            what = "an integer" if whole else "a finite number"
            raise TypeError(f"{name}[{number}] must be {what}, got {value!r}")
    if len(set(found)) < len(found):
        raise ValueError(f"{name} has a value twice: {list(found)}")
    return found


def _metrics(given: Sequence[Metric]) -> tuple[Metric, ...]:
    found = (given,) if isinstance(given, Metric) else tuple(given)
    for number, metric in enumerate(found):
        if not isinstance(metric, Metric):
            raise TypeError(f"metrics[{number}] must be one of es.metrics, got {type(metric).__name__}")
    if not found:
        raise ValueError("metrics is empty; give at least one of es.metrics")
    if any(m.needs_text for m in found) and not any(m.kind == "text" for m in found):
        found = (kinds.text(), *found)
    names = [m.name for m in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"two metrics are called {twice[0]!r}; give one another name=…")
    return found


def _layers(given: Any, depth: int, bank: Bank) -> tuple[int, ...]:
    wanted = resolve_layers(given, depth)
    missing = [layer for layer in wanted if layer not in bank.layers]
    if missing and (not isinstance(given, str) or len(missing) == len(wanted)):
        raise ValueError(f"layers {missing} are not in the bank, which has {list(bank.layers)}")
    return tuple(layer for layer in wanted if layer in bank.layers)
