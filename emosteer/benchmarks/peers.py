"""What others have for the same tensors, where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def compiled(plain: Callable[[], Any], small: bool) -> Callable[[], Any]:
    """torch.compile of one function for the very sizes that it is called with, and nothing kept of others."""
    torch._dynamo.reset()
    return torch.compile(plain, dynamic=False, backend="eager" if small else "inductor")


def products(x: Tensor, directions: Tensor) -> dict[str, Callable[[], Any]]:
    """A library's matrix product in TF32 and in bfloat16, which keep fewer digits."""
    wide, half = x.float(), directions.bfloat16()

    def tf32() -> Tensor:
        with _tf32():
            return wide @ directions.T

    return {"GEMM TF32": tf32, "GEMM bfloat16": lambda: x.bfloat16() @ half.T}


@contextmanager
def _tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    name, value = ("fp32_precision", "tf32") if hasattr(matmul, "fp32_precision") else ("allow_tf32", True)
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def vllm_add_and_norm(x: Tensor, weight: Tensor) -> dict[str, Callable[[], Any]]:
    """The fused addition and norm of vLLM, on a device where it is installed."""
    if not x.is_cuda:
        return {}
    try:
        from vllm import _custom_ops
    except Exception:  # not installed, or built for another torch
        return {}
    into, residual = x.clone(), x.clone()

    def add_and_norm() -> Tensor:
        _custom_ops.fused_add_rms_norm(into, residual, weight, 1e-6)
        return into

    return {"vLLM add + norm": add_and_norm}
