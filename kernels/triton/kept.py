"""A kernel that has been launched once, launched again with other addresses.

Triton's launcher finds the variant anew for each call: it binds the arguments, asks each tensor what it is,
and builds a key from the answers. Where a call repeats itself but for a few addresses, the compiled kernel
and its arguments are known.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .launches import Launch


class Kept:
    """A launch that is made at once, and then again by `start`.

    Args:
        launch: made here.
        changing: the arguments, pointers all, that `start` is given in this order.
    """

    def __init__(self, launch: Launch, *changing: str) -> None:
        compiled = launch.run()
        given = launch.arguments | launch.constants
        names = launch.kernel.arg_names
        self._values = [_plain(given[name]) for name in names]
        self._at = tuple(names.index(name) for name in changing)
        self._run, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata
        self._grid = (*launch.grid, 1, 1)[:3]

    def start(self, stream: int, *addresses: int) -> None:
        """Launch it on a stream of the device that it was first launched on, which must be current."""
        values = self._values.copy()
        for at, address in zip(self._at, addresses):
            values[at] = address
        # No metadata and no hooks, which are for profilers.
        self._run(*self._grid, stream, self._function, self._metadata, None, None, None, *values)


def _plain(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, Tensor) else value
