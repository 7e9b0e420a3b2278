"""Which architectures of the installed transformers are steered, how, and which not and why."""

from .every import architectures, read, survey, write
from .row import KINDS, Row

__all__ = ["KINDS", "Row", "architectures", "read", "survey", "write"]
