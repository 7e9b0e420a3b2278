"""The compiled module of CUDA kernels, or what to do where a build has none."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_HOW = (
    "install a CUDA toolkit (nvcc) no newer than the driver, then\n"
    "    EMOSTEER_CUDA=1 pip install --force-reinstall --no-deps --no-binary emosteer emosteer\n"
    "or, in a checkout, EMOSTEER_CUDA=1 pip install -e . — without them a GPU runs Triton's kernels, which need no "
    "build (pip install triton)"
)


def load() -> ModuleType:
    """The module.

    Raises:
        RuntimeError: it is not there, as in every wheel, or does not load; how to get one.
    """
    try:
        return import_module("emosteer._cuda")
    except ModuleNotFoundError:
        raise RuntimeError(
            f"this build of emosteer has no CUDA kernels, as wheels have none. For them {_HOW}"
        ) from None
    except ImportError as error:
        raise RuntimeError(f"emosteer._cuda does not load ({error}). To build it anew {_HOW}") from error
