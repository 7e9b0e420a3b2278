"""What the patched forwards of one steering share, kept for the next steering of the same model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from emosteer.ops import SteerTable
from emosteer.ops.formula import TokenPrograms

from .addresses import fixed
from .patching import Replacement, buried
from .positions import Positions
from .sequences import Sequences
from .table_rows import TableRows
from .token_rows import Chosen

# How a pass is steered: not at all; in place; by the differentiable operator; by the formula, which compilers
# and the transformations of torch.func see through.
OFF, IN_PLACE, DIFFERENTIABLE, FORMULA = range(4)
# Columns of a mask over positions that there is always room for.
MASK_WIDTH = 1024


class Pass(threading.local):
    """What the patched forwards share while a pass runs, for each thread; plain enough to be traced.

    Attributes:
        mode: how the pass is steered.
        token_row: for operators: int32 `[B, T]`, or None, spread evenly.
        row, keep: for traced code: int32 `[B, 1]`, bool `[B, T]`.
        programs: for the formula, what these rows say, in float32.
        inverse: for its tables of several slots: float32 `[L, S, S, B, 1]`.
        fused: whether blocks may leave their steering to the norm that reads them.
        pending, left: the block that has left it so, and the stream that it returned.
        table: as it was when the pass began, for a gradient.
        mask: 2-D attention mask of the whole model.
        asking: whether a `generate` call is going on, and what cache its own text is in.
        sequences, beside: what is known of the texts; of those that others run beside a `generate` call.
        elsewhere: `token_row` on other devices than the token ids', sent there once a pass.
        buffers: tensors at fixed addresses, by what they hold and their shape.
    """

    def __init__(self) -> None:
        self.mode = OFF
        self.token_row: Tensor | None = None
        self.row: Tensor | None = None
        self.keep: Tensor | None = None
        self.programs: TokenPrograms | None = None
        self.inverse: Tensor | None = None
        self.fused = False
        self.pending: int | None = None
        self.left: Tensor | None = None
        self.table: SteerTable | None = None
        self.mask: Tensor | None = None
        self.asking = False
        self.guided = False
        self.cache: Any = None
        self.sequences: Sequences | None = None
        self.beside: Sequences | None = None
        self.elsewhere: dict[torch.device, Tensor] = {}
        self.buffers: dict[tuple, Tensor] = {}

    def texts(self, device: torch.device) -> Sequences:
        """Sequences of the thread, made when first asked for."""
        if self.sequences is None or self.sequences.device != device:
            self.sequences = Sequences(device)
        return self.sequences

    def token_row_on(self, device: torch.device) -> Tensor | None:
        """`token_row` for a block of this device."""
        row = self.token_row
        if row is None or row.device == device:
            return row
        if device not in self.elsewhere:
            self.elsewhere[device] = row.to(device, non_blocking=True)
        return self.elsewhere[device]

    def hold(self, name: str, value: Tensor) -> Tensor:
        """A copy of `value` where it was the last time."""
        key = (name, value.shape, value.dtype, value.device)
        held = self.buffers.get(key)
        if held is None:
            with torch.inference_mode(False):
                held = self.buffers[key] = fixed(torch.empty_like(value))
        with torch.no_grad():
            return held.copy_(value)


class Level:
    """A nesting level of a model's steerings: the first that is attached takes level 0, the next level 1.

    Compiled code belongs to the objects that it was traced through. They outlive a steering, so the
    next one, with other programs, rows, prompts or positions, runs the code that is there.

    Attributes:
        now: the running pass.
        active: False once the steering is gone and somebody else still calls through.
        yielded: how many steerings attached later are still there.
        proving: whether hooks that want to see the stream are ignored, since a fusion is being proved.
        table, whole: of the steering that is attached; `whole` is `table` with the idle rows after it.
        rows: what keeps them, and their replicas on other devices; None for a table of one device.
        picks: its positions, for traced code.
        gram: float32 `[L, K, K]`, the dot products of each steered block's directions; None for one slot.
        asking: threads in a `generate` call of the steering.
    """

    def __init__(self) -> None:
        self.now = Pass()
        self.active = False
        self.yielded = 0
        self.proving = False
        self.table: SteerTable | None = None
        self.whole: SteerTable | None = None
        self.rows: TableRows | None = None
        self.picks: Chosen | None = None
        self.gram: Tensor | None = None
        self.asking: set[int] = set()
        self._forwards: dict[Any, Replacement] = {}
        self._chosen: dict[torch.device, Chosen] = {}

    def table_on(self, device: torch.device) -> SteerTable:
        """The table for a block of another device."""
        assert self.table is not None  # attached
        return self.table.to(device) if self.rows is None else self.rows.on(device)

    def whole_on(self, device: torch.device) -> SteerTable:
        """`table_on`, with the idle rows."""
        assert self.whole is not None  # attached
        return self.whole.to(device) if self.rows is None else self.rows.whole_on(device)

    @property
    def free(self) -> bool:
        return not self.active and not any(buried(forward) for forward in self._forwards.values())

    def forward(self, key: Any, kind: Callable[[Level], Replacement]) -> Any:
        """The forward that patches what `key` names, made when first asked for."""
        if key not in self._forwards:
            self._forwards[key] = kind(self)
        return self._forwards[key]

    def choose(self, positions: Positions, rows: int, device: torch.device) -> None:
        """Put positions into the tensors that traced code reads, with room for so many rows of the table."""
        if device not in self._chosen:
            with torch.inference_mode(False):
                numbers = fixed(torch.zeros(len(positions.numbers) + 2, dtype=torch.int64, device=device))
                mask = fixed(torch.zeros(rows, MASK_WIDTH, dtype=torch.bool, device=device))
            self._chosen[device] = Chosen(numbers, mask)
        picks = self.picks = self._chosen[device]
        given, only = positions.mask, positions.mask is not None
        with torch.no_grad(), torch.inference_mode(False):
            picks.numbers.copy_(torch.tensor((*positions.numbers, positions.rows, int(only))))
            # Rounded up, so that masks of many widths share compiled code.
            width = MASK_WIDTH if given is None else max(MASK_WIDTH, 1 << (given.shape[1] - 1).bit_length())
            if picks.mask.shape != (rows, width):
                picks.mask = fixed(torch.zeros(rows, width, dtype=torch.bool, device=device))
            if given is not None:
                picks.mask.zero_()
                picks.mask[: len(given) if len(given) > 1 else rows, : given.shape[1]] = given.to(device)


_levels: WeakKeyDictionary[nn.Module, list[Level]] = WeakKeyDictionary()


def free_level(stack: nn.Module) -> Level:
    """The lowest level of a stack that nothing is attached to."""
    levels = _levels.setdefault(stack, [])
    for level in levels:
        if level.free:
            return level
    levels.append(Level())
    return levels[-1]
