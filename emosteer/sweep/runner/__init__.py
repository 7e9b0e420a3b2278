"""Units → finished rows on one model: packed into mixed batches, sharing what can be shared."""

from .run import Runner
from .work import Work

__all__ = ["Runner", "Work"]
