"""emosteer: activation steering at near-zero cost.

Read, steer and sweep directions in the residual stream of Hugging Face language models:

    import emosteer as es
    model, tok = es.load("smollm2")
    bank = es.extract(model, tok, es.emotions.corpus())
    with es.steer(model, bank, "calm", 0.1):
        model.generate(...)
"""

from __future__ import annotations

from importlib import import_module

from ._version import __version__

# Everything is imported where it is first used: `import emosteer` costs little more than nothing.
_EXPORTS = {
    "Bank": "bank",
    "SteerTable": "ops",
    "Moments": "ops",
    "Sweep": "sweep",
    "ablate": "programs",
    "accelerate": "compat",
    "add": "programs",
    "backend": "ops",
    "calibrate": "calibration",
    "cap": "programs",
    "circumplex": "emotions.circumplex",
    "collect": "extraction",
    "extract": "extraction",
    "exportable": "exporting",
    "extract_pairs": "extraction",
    "floor": "programs",
    "hold": "programs",
    "load": "models.loading",
    "metrics": "sweep",
    "monitor": "monitoring",
    "read": "reading",
    "regulate": "regulating",
    "rotate": "programs",
    "steer": "steering",
}
_MODULES = ("emotions", "formats", "kernels", "models", "ops", "sweep")

__all__ = ["__version__", *_EXPORTS, *_MODULES]


def __getattr__(name: str):
    if name in _EXPORTS:
        value = getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
