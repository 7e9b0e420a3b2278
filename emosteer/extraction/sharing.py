"""Adding up what several processes have counted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .state import LayerMoments


def process_group() -> tuple[int, int]:
    """`(rank, processes)` of torch.distributed; `(0, 1)` outside a group."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def merged(mine: LayerMoments, empty: Callable[[], LayerMoments]) -> LayerMoments:
    """The sum of all processes' moments, in the order of their ranks: the same in each of them."""
    import torch.distributed as dist

    world = dist.get_world_size()
    gathered: list[dict[str, Tensor]] = [{} for _ in range(world)]
    for name, tensor in mine.state().items():
        # bool is not a type that every backend sends
        sent = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
        parts = [torch.empty_like(sent) for _ in range(world)]
        dist.all_gather(parts, sent)
        for rank, part in enumerate(parts):
            gathered[rank][name] = part.to(tensor.dtype)
    total = empty()
    for state in gathered:
        one = empty()
        one.load(state)
        total.merge(one)
    return total
