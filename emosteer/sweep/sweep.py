"""A sweep: what is asked, run into a folder, opened again."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from emosteer.bank import Bank
from emosteer.models.blocks import find_decoder, resolve_layers
from emosteer.models.capture import name_of
from emosteer.programs import Program

from . import metrics as kinds
from .arms import CONTROLS, arms_of, with_controls
from .definition import DefinitionError, keywords, program_definition, read_yaml
from .engines import engine as engine_of
from .generation import Generation
from .identity import model_id, positions_label, positions_of
from .metrics import Metric
from .opened import Opened
from .plan import Plan, prompts_of
from .progress import SweepProgress
from .runner import Runner
from .runner.run import ready_metrics
from .runner.work import remaining
from .store import Store

VERSIONS = ("emosteer", "torch", "transformers", "numpy", "pyarrow")


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
            self._name = os.fspath(self.model)
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
            engine: "local"; "ray" and "vllm" say what they need.
            retry_failed: run rows again that failed before.
            progress: show units done, units a second, time left and failures.
            flush_seconds: between two parts; None: 2 s at first, up to a minute in long runs.
            options: of the engine.

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
            if retry_failed:
                store.forget_failed()
            done = store.done()
            store.write_bank(_bank_bytes(self.bank))
            store.write_manifest(self.manifest(plan, metrics, folder))
            text_id = next((m.id(self.generation) for m in metrics if m.kind == "text"), None)
            total = sum(1 for _ in plan) if self.exclude or self.where else plan.size
            with SweepProgress(total, show=progress) as bar:
                works = remaining(plan, metrics, self.generation, done, text_id, skipped=bar.skipped)
                carry_out(self.runner(), works, store, bar, flush_seconds=flush_seconds, **options)
        return Opened(store)

    def manifest(self, plan: Plan, metrics: Sequence[Metric], folder: Any) -> dict[str, Any]:
        """What the folder says of itself."""
        name, revision = name_of(self.model)
        return {
            "definition": self.definition(),
            "model": {"name": name, "revision": revision, "id": plan.model_id},
            "units": plan.size,
            "axes": plan.axes(),
            "metrics": {
                m.id(self.generation): {"name": m.name, "kind": m.kind, **m.definition()} for m in metrics
            },
            "versions": _versions(),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def definition(self) -> dict[str, Any]:
        """The sweep as a YAML file would say it; what it could not say is under `python`."""
        found: dict[str, Any] = {
            "model": getattr(self, "_name", self.model if isinstance(self.model, str) else None),
            "revision": self.revision,
            "dtype": str(self.dtype).removeprefix("torch.") if self.dtype is not None else None,
            "device": self.device,
            "prompts": self.prompts,
            "strengths": list(self.strengths) or None,
            "layers": [list(one) if isinstance(one, (tuple, range)) else one for one in self.layers],
            "positions": list(self.position_labels),
            "seeds": list(self.seeds),
            "generation": {k: getattr(self.generation, k) for k in Generation.__dataclass_fields__},
            "controls": list(self.controls),
            "random_directions": self.random_directions,
            "control_seed": self.control_seed,
            "exclude": [dict(rule) for rule in self.exclude] or None,
            "relative": self.relative,
            "batch_tokens": self.batch_tokens,
            "batch_rows": self.batch_rows,
        }
        python: list[str] = []
        if found["model"] is None:
            python.append("model: given as an object")
        if self.where is not None:
            python.append("where: a function")
        given = self.programs
        if given is not None and given != "all":
            given = [given] if isinstance(given, (str, Program)) else given
            try:
                found["programs"] = [p if isinstance(p, str) else program_definition(p) for p in given]
            except ValueError as error:
                python.append(f"programs: {error}")
        found["metrics"] = []
        for metric in self.metrics:
            definition = metric.definition()
            if metric.kind == "judge":
                if definition["function"] is None:
                    python.append(f"metrics: the judge {metric.name!r} is a function of a program")
                definition = {"function": definition["function"]}
            if metric.kind == "readings" and definition.pop("directions", None):
                python.append(f"metrics: {metric.name!r} reads on another bank")
            found["metrics"].append({metric.kind: {**definition, "name": metric.name}})
        found = {key: value for key, value in found.items() if value is not None}
        return {**found, "python": python} if python else found


def resumed(folder: str | os.PathLike[str], *, model: Any = None, tok: Any = None) -> Sweep:
    """The sweep that a folder's manifest defines, to be run on.

    Args:
        model, tok: where the sweep was given a model as an object.

    Raises:
        FileNotFoundError: no folder of a sweep.
        ValueError: the sweep has parts that only the program which made it can give.
    """
    store = Store(folder)
    definition = dict(store.manifest()["definition"])
    missing = [why for why in definition.pop("python", []) if model is None or not why.startswith("model:")]
    if missing:
        raise ValueError(
            f"{store} cannot be resumed from its manifest alone ({'; '.join(missing)}); "
            f"run the same es.Sweep(…).run({str(folder)!r}) again, it goes on from there"
        )
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "bank.safetensors"
        path.write_bytes(store.read_bank())
        found = keywords({**definition, "bank": str(path)}, Path.cwd())
        found["bank"] = Bank.load(path)
    if model is not None:
        found.update(model=model, tok=tok)
    return Sweep(**found)


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


def _bank_bytes(bank: Bank) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.safetensors"
        bank.save(path)
        return path.read_bytes()


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
