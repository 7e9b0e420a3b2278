"""What is asked of a sweep, checked: the axes of its grid, what is measured, how text is generated."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from emosteer import spelling
from emosteer.bank import Bank
from emosteer.models.blocks import find_decoder, resolve_layers
from emosteer.programs import Program

from .. import metrics as kinds
from ..metrics import Metric
from ..plan import CONTROLS, Generation, Plan, arms_of, prompts_of, with_controls
from ..plan.identity import model_id


class Definition:
    """The arguments of a sweep as they were given, and the units that they stand for.

    `emosteer.sweep.Sweep` describes the arguments. An engine gets one of these to ask it how the model is
    loaded; a folder's manifest says it again in words.
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
        self.position_labels = tuple(spelling.spelled_positions(p) for p in self.positions)
        for label in self.position_labels:
            spelling.positions(label)
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
            layers=self.layer_sets(depth),
            exclude=self.exclude,
            where=self.where,
            relative=self.relative,
        )

    def layer_sets(self, depth: int) -> list[tuple[int, ...]]:
        """The blocks of each set of layers, of a model with so many."""
        return [_layers(one, depth, self.bank) for one in self.layers]


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
