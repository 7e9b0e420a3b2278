"""A sweep: what is asked, run into a folder, opened again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from emosteer.models.blocks import find_decoder

from .definition import Definition, DefinitionError
from .definition.manifest import bank_bytes, keywords_of, manifest_of
from .definition.yaml_file import keywords, read_yaml
from .engines.local import Runner
from .engines.named import engine as engine_of
from .engines.progress import SweepProgress
from .engines.work import remaining
from .metrics.reading import ready_metrics
from .opened import Opened
from .store import Store


class Sweep(Definition):
    """concepts × strengths × prompts × seeds × positions × layer sets, measured into a folder.

        sweep = es.Sweep("smollm2", bank=bank, prompts=["I feel"], strengths=(0.05, 0.1),
                         metrics=[es.metrics.choices([" good", " bad"])])
        table = sweep.run("out").table()

    The grid is streamed, never held. Each unit is hashed from what determines it, each metric apart:
    running into a folder that has results goes on from there, and a changed metric runs no unit again whose
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

    @classmethod
    def resumed(cls, folder: str | os.PathLike[str], *, model: Any = None, tok: Any = None) -> Sweep:
        """The sweep that a folder's manifest defines, to be run on.

        Args:
            folder: of the sweep.
            model, tok: where the sweep was given a model as an object.

        Raises:
            FileNotFoundError: no folder of a sweep.
            ValueError: the sweep has parts that only the program which made it can give.
        """
        found = keywords_of(Store(folder), folder, with_model=model is not None)
        return cls(**(found if model is None else {**found, "model": model, "tok": tok}))

    @staticmethod
    def open(folder: str | os.PathLike[str]) -> Opened:
        """The results in a folder: `.table()`, `.status()`, `.summary()`.

        Raises:
            FileNotFoundError: no folder of a sweep.
        """
        return Opened(Store(folder))

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
            retry_failed: run results again that failed before.
            progress: show units done, units a second, time left and failures.
            flush_seconds: between two parts; None: 2 s at first, up to a minute in long runs.
            options: of the engine; those of "ray" are listed at `engines.ray.driver.run_ray`: num_workers,
                cpus_per_worker, gpus_per_worker, resources, address and more; those of "vllm" are
                arguments of `vllm.EngineArgs`: tensor_parallel_size, max_model_len and more;
                "ray" takes a mapping of them, `vllm`, and runs a vLLM in each worker.

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
                carry_out(runner, works, store, bar, flush_seconds=flush_seconds, sweep=self, **options)
        return Opened(store)
