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
    )
}

# Looked at and left alone, each for one reason.
OUT_OF_REACH = {
    "transformer-lens": "its hooks on hook_resid_post are functions that you write, so there is no operation of "
    "its own to replace; call emosteer.ops.steer_ in yours (docs/accelerate.md shows how)",
    "nnterp": "StandardizedTransformer.steer is one in-place addition inside nnsight's own run of the model; the "
    "time goes to nnsight",
    "nnsight": "an edit is the code that you write in a trace; the time goes to running the trace",
    "activation-steering": "it is on no package index, so no version of it is tested",
    "aisteer360": "it is on no package index, so no version of it is tested",
}
