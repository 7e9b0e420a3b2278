"""The backend `cuda` without a GPU: its kernels compiled for this machine's processor, on CPU tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType

from emosteer.ops import backends, cuda

from . import build


@lru_cache(maxsize=1)
def _host_build() -> ModuleType:
    return build.load(build.built())


@contextmanager
def installed(module: ModuleType | None = None) -> Iterator[ModuleType]:
    """The backend `cuda` runs on `module` (default: the host build) within."""
    before = cuda._cuda
    cuda._cuda = module or _host_build()
    backends.unavailable.cache_clear()
    try:
        yield cuda._cuda
    finally:
        cuda._cuda = before
        backends.unavailable.cache_clear()
