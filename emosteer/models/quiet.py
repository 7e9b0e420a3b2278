"""What other libraries say of themselves while transformers loads them, kept from users who never asked for them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Where torchao is installed, transformers imports it: it warns of kernels for other processors, torch of its enums.
LOGGERS = ("torchao", "torch.utils._pytree")


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Warnings of `LOGGERS` are dropped within (or in a function that it decorates), errors are not.

    So is what Python says of their source when it first compiles it: string literals with a stray backslash.
    """
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"(invalid|\S+ is an invalid) escape sequence")
            yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
