"""The compiled module of row kernels (`csrc/cpu`), and tensors as it takes them: dtypes by number, rows by strides."""

from __future__ import annotations

import torch
from torch import Tensor

from ..strides import collapsed
from ..table import SteerTable

REBUILD = (
    "the compiled module emosteer._cpu is missing or does not load ({reason}). Build it with\n"
    "    pip install -e .        (in a checkout)   or   pip install --force-reinstall --no-deps emosteer\n"
    "which needs a C++ compiler (Debian, Ubuntu: apt-get install g++). "
    'Meanwhile EMOSTEER_BACKEND=reference or `with emosteer.backend("reference"):` runs without it, slowly.'
)

_reason: str | None = None
try:  # after torch, so that both share one OpenMP runtime
    from emosteer import _cpu
except ImportError as error:
    _reason = REBUILD.format(reason=error)
    _cpu = None

CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    return _reason


def rows_of(x: Tensor) -> _cpu.Rows | None:
    """The rows of `x` by two strides; None where its leading dimensions do not collapse to two."""
    if (found := collapsed(x)) is None:
        return None
    inner, outer_stride, inner_stride = found
    item = x.element_size()
    return _cpu.Rows(x.data_ptr(), inner, outer_stride * item, inner_stride * item)


NO_ROWS = None if _reason else _cpu.Rows(0, 1, 0, 0)


def handle_of(table: SteerTable) -> _cpu.Table:
    """A table as the module knows it; checked, and kept as `table._handle`."""
    for problem in table.astray():
        raise problem
    handle = _cpu.Table(
        table.rows, table.slots, *(column.data_ptr() for column in table.columns()), *table.strides
    )
    object.__setattr__(table, "_handle", handle)
    return handle
