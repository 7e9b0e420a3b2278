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
        changing: tensors among its arguments, each wherever it is one, that `start` is given others for.
    """

    def __init__(self, launch: Launch, *changing: Tensor) -> None:
        given = launch.arguments | launch.constants
        arguments = [given[name] for name in launch.kernel.arg_names]
        self._at = [tuple(at for at, value in enumerate(arguments) if value is tensor) for tensor in changing]
        if not all(self._at):
            raise ValueError("a tensor that changes from call to call is no argument of this launch")
        compiled = launch.run()
        self._values = [_plain(value) for value in arguments]
        self._run, self._function, self._metadata = compiled.run, compiled.function, compiled.packed_metadata
        self._grid = (*launch.grid, 1, 1)[:3]

    def start(self, stream: int, *addresses: int) -> None:
        """Launch it on a stream of the device that it was first launched on, which must be current.

        Args:
            stream: its address.
            addresses: of the tensors that stand in for those that change, in their order.
        """
        values = self._values.copy()
        for places, address in zip(self._at, addresses):
            for at in places:
                values[at] = address
        # No metadata and no hooks, which are for profilers.
        self._run(*self._grid, stream, self._function, self._metadata, None, None, None, *values)


def _plain(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, Tensor) else value
