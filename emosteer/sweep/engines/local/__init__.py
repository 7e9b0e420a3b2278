"""Units to results in batches of this process's model."""

from .run import Runner

__all__ = ["Runner"]
