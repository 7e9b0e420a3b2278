"""Host memory that a device reads from while the host goes on: one copy a change, ordered with the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Ring:
    """Rows sent to a device without a wait: from pinned buffers in turn, each by one copy on the current stream.

    The copy lies between the step that was launched before it and the one that is launched after, on the same
    stream, so a step sees all of a change or nothing of it. Steps that run on another stream must be ordered
    with this one, as any work of two streams.

    Args:
        like: a tensor of the host, of which rows are sent.
        device: where they go.
        depth: changes that may be on their way at once; one more waits for the first.
        pinned, event: of a CUDA device by default; other devices copy as they do.
    """

    def __init__(
        self,
        like: Tensor,
        device: torch.device,
        depth: int = 8,
        *,
        pinned: bool | None = None,
        event: Callable[[], Any] | None = None,
    ) -> None:
        on_cuda = device.type == "cuda"
        self._device, self._next = device, 0
        self._buffers = [
            torch.empty_like(like, pin_memory=on_cuda if pinned is None else pinned) for _ in range(depth)
        ]
        event = torch.cuda.Event if event is None and on_cuda else event
        self._sent = [None if event is None else event() for _ in range(depth)]

    def require_no_capture(self) -> None:
        """Raise RuntimeError where a CUDA graph is being captured, which would repeat a copy at each replay."""
        if self._device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "programs cannot be set while a CUDA graph is captured: the graph would set them again at each "
                "replay; set them before the capture or between replays"
            )

    def send(self, rows: Tensor, into: Tensor) -> None:
        """Copy `rows` of the host to `into` on the device."""
        i = self._next
        self._next = (i + 1) % len(self._buffers)
        sent = self._sent[i]
        if sent is not None:
            sent.synchronize()  # over long ago, unless `depth` changes were made within one step
        staged = self._buffers[i][: len(rows)]
        staged.copy_(rows)
        into.copy_(staged, non_blocking=True)
        if sent is not None:
            sent.record(torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None)
