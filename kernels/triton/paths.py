"""One kernel, compiled two ways: for what is aligned, which then moves 16 bytes at a time, and for anything.

Triton left alone would compile a variant for each set of arguments that happen to be multiples of 16, or
1, or beyond 32 bits. Here there are two, so that all that can run can also be compiled and read before.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


class Kernel:
    """A kernel by its two paths; `wide` names the pointers, widths and strides that the aligned one relies on."""

    def __init__(self, function: Callable, wide: tuple[str, ...]) -> None:
        parameters = [
            name
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.annotation is not tl.constexpr
        ]
        self.name = function.__name__
        self.wide = wide
        self.aligned = triton.jit(function, do_not_specialize=[p for p in parameters if p not in wide])
        self.plain = triton.jit(function, do_not_specialize=parameters)

    def fits(self, arguments: dict[str, Any]) -> bool:
        """Whether these arguments are aligned."""
        for name in self.wide:
            value = arguments[name]
            if value is not None and (value if isinstance(value, int) else value.data_ptr()) % 16:
                return False
        return True

    def path(self, arguments: dict[str, Any]) -> Any:
        """The path for these arguments."""
        return self.aligned if self.fits(arguments) else self.plain


def kernel(*wide: str) -> Callable[[Callable], Kernel]:
    """Decorates a kernel, as `triton.jit` does, for both paths."""
    return lambda function: Kernel(function, wide)
