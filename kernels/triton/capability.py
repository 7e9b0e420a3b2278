"""What the installed Triton can do, asked rather than known by its version."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

# Ways to a product of float32 on tensor cores, the best first: three bfloat16 parts of each factor and six
# products; two TF32 parts and three products, of half the rate; float32 itself.
_PRECISIONS = ("bf16x6", "tf32x3", "ieee")


@triton.jit
def _nothing():
    pass


# Kernels run in Triton's interpreter, on CPU tensors.
INTERPRETED = not isinstance(_nothing, JITFunction)


def lacking() -> str | None:
    """What this Triton or this machine lacks to run the kernels, None where nothing is missing."""
    if not hasattr(tl, "tuple"):
        return (
            f"triton {triton.__version__} knows no tuples, which the kernels are written with; "
            f"3.3 or later does (it comes with torch 2.7)"
        )
    if INTERPRETED:
        return None
    try:
        _nothing[(1,)]()
    except Exception as error:
        return f"triton {triton.__version__} cannot launch an empty kernel here ({type(error).__name__}: {error})"
    return None


@cache
def precision(platform: str) -> str:
    """How a product of two float32 keeps float32's digits: an `input_precision` of `tl.dot`.

    Args:
        platform: "cuda" or "hip".
    """
    if INTERPRETED:  # whose products are float32 and which has no other names
        return "ieee"
    known = _options(platform).allowed_dot_input_precisions
    return next(name for name in _PRECISIONS if name in known)


def _options(platform: str):
    if platform == "hip":
        from triton.backends.amd.compiler import HIPOptions

        return HIPOptions
    from triton.backends.nvidia.compiler import CUDAOptions

    return CUDAOptions


PLATFORM = "hip" if torch.version.hip else "cuda"
