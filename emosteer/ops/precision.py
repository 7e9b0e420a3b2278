"""Matrix products of float32 that keep its digits, whatever a process allows its own.

`torch.set_float32_matmul_precision("high")`, which most who compile a model call, makes TF32 of them on a
GPU; "medium" makes bfloat16 of them on a CPU too. A projection would then be off by a thousandth of the row.
"""

from __future__ import annotations

from typing import Any

import torch


def _setting(device_type: str) -> tuple[Any, str, Any]:
    """`(object, attribute, value)` that stands for whole products; older torch has one for all devices."""
    backend = torch.backends.cuda if device_type == "cuda" else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    if matmul is not None and hasattr(matmul, "fp32_precision"):
        return matmul, "fp32_precision", "ieee"
    return _Legacy, "precision", "highest"


class _LegacyMeta(type):
    @property
    def precision(cls) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(cls, value: str) -> None:
        torch.set_float32_matmul_precision(value)


class _Legacy(metaclass=_LegacyMeta):
    """torch before 2.9: one precision for the process."""


_SETTINGS = {device_type: _setting(device_type) for device_type in ("cpu", "cuda")}


class whole_float32:
    """Within, products of float32 on a device are those of float32, and autocast leaves them alone."""

    def __init__(self, device_type: str) -> None:
        self._where, self._name, self._whole = _SETTINGS["cpu" if device_type == "cpu" else "cuda"]
        self._autocast = torch.is_autocast_enabled(device_type) and torch.autocast(device_type, enabled=False)

    def __enter__(self) -> None:
        self._before = getattr(self._where, self._name)
        if self._before != self._whole:
            setattr(self._where, self._name, self._whole)
        if self._autocast:
            self._autocast.__enter__()

    def __exit__(self, *error: object) -> None:
        if self._autocast:
            self._autocast.__exit__(*error)
        if self._before != self._whole:
            setattr(self._where, self._name, self._before)
