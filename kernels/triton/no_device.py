"""Triton without a device: kernels are compiled for a GPU that is not there, and launches are counted, not made.

For what no machine code answers: whether every kernel compiles with the Triton that is installed, whichever
it is, and what a launch costs the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from triton.runtime import driver

from .launches import Launch


class NoDevice:
    """Stands for Triton's driver; `launched` counts what would have been launched."""

    def __init__(self, target: Any) -> None:
        self.target, self.launched = target, 0
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (1, 1, 0, 0, 1024),
            unload_module=lambda *_: None,
            get_device_properties=lambda _device: {"max_shared_mem": 227 * 1024},
        )

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return self.count

    def count(self, *_arguments: Any) -> None:
        self.launched += 1

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        pass


@contextmanager
def no_device(target: Any) -> Iterator[NoDevice]:
    """Within, this process's Triton compiles for `target` and launches nothing."""
    stub, held = NoDevice(target), vars(driver)
    active = held.get(
        "_active", held.get("active")
    )  # its own is made at the first look, which would fail here
    driver.set_active(stub)
    try:
        yield stub
    finally:
        driver.set_active(active)


def compile(launch: Launch, target: Any) -> Any:
    """Triton's compiled kernel, by the very call that launches it on a device; one target a process."""
    constants = launch.constants_on(target.backend)
    return launch.kernel.warmup(
        grid=launch.grid, **launch.arguments, **constants, **launch.options(target.warp_size)
    )
