"""The backend `cuda` without a GPU: its kernels compiled for this machine's processor, on CPU tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from emosteer.ops import backends, cuda

from . import build


@contextmanager
def installed(module: ModuleType | None = None) -> Iterator[ModuleType]:
    """The backend `cuda` runs on `module` (default: the host build) within."""
    before = cuda._cuda
    cuda._cuda = module or build.load(build.built())
    backends.unavailable.cache_clear()
    try:
        yield cuda._cuda
    finally:
        cuda._cuda = before
        backends.unavailable.cache_clear()
