"""Arrays of other libraries as tensors over the same memory: NumPy's, and any CPU array that speaks DLPack."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CPU = 1  # kDLCPU


def shared(x: Any) -> Any:
    """A tensor over the memory of `x`, nothing copied; what is no array comes back for the checks to refuse.

    Raises:
        TypeError, ValueError: an array that torch cannot address: another device, byte order or dtype,
            or strides that run backwards.
    """
    if isinstance(x, Tensor) or x is None:
        return x
    if isinstance(x, np.ndarray):
        return _of_numpy(x)
    if not hasattr(x, "__dlpack__") or not hasattr(x, "__dlpack_device__"):
        return x
    kind, _ = x.__dlpack_device__()
    if kind != _CPU:
        raise ValueError(
            f"a {type(x).__name__} must lie in the memory of the CPU; use torch.from_dlpack for others"
        )
    strides = getattr(x, "strides", None)
    # torch ends the process for a capsule whose strides run backwards.
    if strides is not None and not callable(strides) and any(stride < 0 for stride in strides):
        raise ValueError(f"a {type(x).__name__} with strides {tuple(strides)} runs backwards; copy it first")
    return torch.from_dlpack(x)


def _of_numpy(x: np.ndarray) -> Tensor:
    if any(stride < 0 for stride in x.strides):
        raise ValueError(
            f"an array with strides {x.strides} runs backwards; call numpy.ascontiguousarray first"
        )
    if x.dtype.name == "bfloat16":  # of ml_dtypes, which torch does not know
        return _of_numpy(x.view(np.int16)).view(torch.bfloat16)
    if not x.dtype.isnative:
        raise TypeError(
            f"an array of dtype {x.dtype.str} has foreign byte order; call .astype({x.dtype.name!r}) first"
        )
    if x.flags.writeable:
        return torch.from_numpy(x)
    with warnings.catch_warnings():  # it is only read
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(x)
