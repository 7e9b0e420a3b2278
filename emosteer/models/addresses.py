"""Tensors that compiled code may find at one address for good."""

from __future__ import annotations

from torch import Tensor


def fixed(tensor: Tensor) -> Tensor:
    """Tell torch.compile that a tensor stays where it is: a CUDA graph reads it there instead of a copy of it.

    What `torch._dynamo.mark_static_address(tensor, guard=False)` notes, without the second that importing
    the compiler takes. Another tensor in its place is seen too: the graph is recorded again.
    """
    tensor._dynamo_static_input_type = "unguarded"  # type: ignore[attr-defined]
    return tensor
