"""What other libraries say of themselves while transformers loads them, kept from users who never asked for them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

# Where torchao is installed, transformers imports it: it warns of kernels for other processors, torch of its enums.
LOGGERS = ("torchao", "torch.utils._pytree")


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Warnings of `LOGGERS` are dropped within (or in a function that it decorates), errors are not."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)
