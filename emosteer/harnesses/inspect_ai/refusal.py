"""Errors in a model's arguments, which inspect_ai's command line shows as one message and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from inspect_ai._util.error import PrerequisiteError
from rich.text import Text


@contextmanager
def refusing() -> Iterator[None]:
    """Errors of the block keep their type and message, and are what inspect_ai takes for a user's mistake."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> Exception:
    kind = type(error)
    found = type(kind.__name__, (PrerequisiteError, kind), {})(Text(f"emosteer: {error}"))
    found.args = (str(error),)
    return found
