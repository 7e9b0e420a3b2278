"""Projections of the residual stream `hidden + residual`, written down for the tokens that somebody reads.

For a token n that is read, `values[n, k] = <x_n, v_k>` with `x = hidden + residual` rounded as the next norm sees it;
the rows of other tokens keep what they hold. The buffer is made once, so nothing is allocated that a graph would have
to know of, and nothing but `reading` is read where nobody reads.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module

import torch
from torch import Tensor

from .operator import entries_of, launchable

_library = torch.library.Library("emosteer", "FRAGMENT")
_library.define(
    "read_stream_(Tensor hidden, Tensor? residual, Tensor directions, Tensor reading, Tensor(a!) values) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def read_stream_(
    hidden: Tensor, residual: Tensor | None, directions: Tensor, reading: Tensor, values: Tensor
) -> None:
    """Project the stream of a pass.

    Args:
        hidden: `[N, D]`, float32, bfloat16 or float16.
        residual: the same, or None where `hidden` is the stream itself.
        directions: float32 `[K, D]`.
        reading: int32 `[at least N]`: not 0 for tokens that are read.
        values: float32 `[at least N, K]`, written.

    Raises:
        ValueError: `reading` has fewer entries than `hidden` has tokens.
    """
    torch.ops.emosteer.read_stream_.default(hidden, residual, directions, reading, values)


def _on_cpu(
    hidden: Tensor, residual: Tensor | None, directions: Tensor, reading: Tensor, values: Tensor
) -> None:
    at = entries_of(reading, hidden, "reading").nonzero()[:, 0]
    if len(at):
        x = hidden[at] if residual is None else hidden[at] + residual[at]
        values[at] = x.float() @ directions.T


def on_gpu(
    hidden: Tensor, residual: Tensor | None, directions: Tensor, reading: Tensor, values: Tensor
) -> None:
    """One kernel, a program a token, which ends at once for one that is not read."""
    reading = entries_of(reading, hidden, "reading")
    if launchable(hidden, residual):
        launch = import_module("emosteer.kernels.read_stream").launch(
            hidden, residual, directions, reading, values
        )
        if launch is not None:
            with torch.cuda.device(hidden.device) if hidden.is_cuda else nullcontext():
                launch.run()
            return
    _elsewhere(hidden, residual, directions, reading, values)


def _elsewhere(
    hidden: Tensor, residual: Tensor | None, directions: Tensor, reading: Tensor, values: Tensor
) -> None:
    """On other devices: plain torch, which a graph can capture."""
    x = hidden if residual is None else hidden + residual
    here = values[: len(hidden)]
    read = entries_of(reading, hidden, "reading")[:, None] != 0
    here.copy_(torch.where(read, x.float() @ directions.T, here))


_library.impl("read_stream_", _on_cpu, "CPU")
_library.impl("read_stream_", on_gpu, "CUDA")
_library.impl("read_stream_", _elsewhere, "CompositeExplicitAutograd")


@torch.library.register_fake("emosteer::read_stream_", lib=_library)
def _(*_arguments):
    return None
