"""A device for the tests of this folder: the real one, or a CPU that records what a device would be asked.

`EMOSTEER_STUB_DEVICE=1` walks through every line of them on a CPU (`tests/test_gpu_walk.py`): the CUDA kernels in
their host build, Triton's in its interpreter, a graph as the function that it was captured from, a wait for
the device as what would have been one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

STUBBED = os.environ.get("EMOSTEER_STUB_DEVICE") == "1"

_ASK = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal")


class _Waits(TorchDispatchMode):
    """Operations that would wait for a device: a value asked for, or a shape that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removesuffix(".default")
        masks = name.startswith("aten.index") and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ())
        )
        if name.startswith(_ASK) or (masks and "index_put" not in name):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def waits(run: Callable[[], Any]) -> list[str]:
    """What of `run` waits for the device, in words."""
    if STUBBED:
        with _Waits() as seen:
            run()
        return seen.found
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return [str(one.message) for one in seen if "synchroniz" in str(one.message)]


def captured(run: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """`(replay, out)` of a function captured as a CUDA graph, after three calls on a stream of their own."""
    if STUBBED:
        out = run().clone()

        def replay() -> None:
            out.copy_(run())

        return replay, out
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return graph.replay, out
