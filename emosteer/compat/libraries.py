"""The libraries that `accelerate` knows: what it does to each, or why it can do nothing."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from .replacing import Replacements


@dataclass(frozen=True)
class Library:
    """A library whose hot paths run on our kernels.

    Attributes:
        distribution: its name on the package index.
        module: the module whose import makes its code reachable.
        tested: the versions that the tests run against; others stay as they are.
        adapter: our module with `install(replaced)`.
        what: what runs on the kernels, in a few words.
    """

    distribution: str
    module: str
    tested: tuple[str, ...]
    adapter: str
    what: str

    def install(self, replaced: Replacements) -> None:
        """Replace what is slow; only once the library is imported, which our module for it does too."""
        import_module(f"{__package__}.{self.adapter}").install(replaced)


LIBRARIES = {
    library.distribution: library
    for library in (
        Library("repeng", "repeng", ("0.4.0",), "repeng", "ControlModel steers, ControlVector.train reads"),
        Library(
            "steering-vectors",
            "steering_vectors",
            ("0.12.2",),
            "steering_vectors",
            "SteeringVector.apply and patch_activations steer, train_steering_vector reads",
        ),
        Library("dialz", "dialz", ("1.1.4",), "dialz", "SteeringModel steers, SteeringVector.train reads"),
        Library(
            "lm-eval",
            "lm_eval.models.hf_steered",
            ("0.4.13",),
            "lm_eval",
            "the actions add and clamp of the model `steered`",
        ),
        Library(
            "pyvene",
            "pyvene",
            ("0.1.8",),
            "pyvene",
            "AdditionIntervention and SubtractionIntervention on streams",
        ),
        Library(
            "saklas",
            "saklas.core.hooks",
            ("5.3.0",),
            "saklas",
            "ablations with and without pushes; a push alone is one addition already, and norms pay for it",
        ),
        Library(
            "transformer-lens",
            "transformer_lens.model_bridge.generalized_components.normalization",
            ("4.3.0",),
            "transformer_lens",
            "a bridge's RMS norms, once each; hooks are functions that you write and run as they are",
        ),
    )
}

# Looked at and left alone, each for one reason.
OUT_OF_REACH = {
    "nnterp": "StandardizedTransformer.steer is one in-place addition a block inside a trace of nnsight; a step "
    "costs nnsight's switch to the trace and back at that block (0.1 ms), which no kernel shortens",
    "nnsight": "an edit is the code that you write in a trace, so there is no operation of its own to replace; it "
    "puts a forward of its own in every module, norms too, and a switch to the trace where you look",
    "activation-steering": "it is on no package index, so no version of it is tested",
    "aisteer360": "it is on no package index, so no version of it is tested",
}
