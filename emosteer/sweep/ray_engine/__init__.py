"""`engine="ray"`: actors that hold one model each; units stream to them, they write to the shared store."""

from .driver import run_ray

__all__ = ["run_ray"]
