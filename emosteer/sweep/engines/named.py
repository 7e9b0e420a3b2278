"""The engine of a name."""

from __future__ import annotations

from collections.abc import Callable


def engine(name: str) -> Callable[..., None]:
    """What carries a sweep out.

    Raises:
        ValueError, ImportError: no such engine, or one that cannot be used here, and why.
    """
    if name == "local":
        from .local.driver import run_local

        return run_local
    if name == "ray":
        from .ray.cluster import imported as ray_imported

        ray_imported()
        from .ray.driver import run_ray

        return run_ray
    if name == "vllm":
        from .vllm.server import imported as vllm_imported

        vllm_imported()
        from .vllm.driver import run_vllm

        return run_vllm
    raise ValueError(f'engine must be "local", "ray" or "vllm", got {name!r}')
