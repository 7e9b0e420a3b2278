"""The row update on a residual stream in two parts, `stream = hidden + residual`, as vLLM's blocks hand it on.

For a token n whose row r of the table acts at this layer, with the row update `steer` of `SteerTable` and one unit
of length `u_r` a row,

    x = hidden + residual, rounded as the next norm sees it
    hidden ← hidden + (steer(x) − x)

Tokens of row −1, tokens whose row does not act at this layer, and rows that their program leaves alone keep their
bits. Nothing is allocated for them, and nothing but `token_row` is read where no token is steered.

Everything that differs between layers comes in tensors, so that equal blocks stay equal pieces for a compiler.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from emosteer.ops import SteerTable, formula, steer

_library = torch.library.Library("emosteer", "FRAGMENT")
_library.define(
    "steer_stream_(Tensor(a!) hidden, Tensor? residual, Tensor directions, Tensor rows, Tensor place, Tensor units, "
    "Tensor token_row, int slots) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def steer_stream_(
    hidden: Tensor,
    residual: Tensor | None,
    directions: Tensor,
    rows: Tensor,
    place: Tensor,
    units: Tensor,
    token_row: Tensor,
    slots: int,
) -> None:
    """Steer the stream of a pass in place.

    Args:
        hidden: `[N, D]`, float32, bfloat16 or float16.
        residual: the same, or None where `hidden` is the stream itself.
        directions: float32 `[K, D]`, unit rows.
        rows: int32 `[R, W]` (`Deployment`): a program's record, the number of its unit, the bits of its layers.
        place: int32 `[3]`: the word of a row with the unit's number, the word and the bit of this layer.
        units: float32 `[U]`, one unit of length at this layer by its number.
        token_row: int32 `[at least N]`: the row of each token, −1 for tokens that stay as they are.
        slots: of the table.

    Raises:
        ValueError: `token_row` has fewer entries than `hidden` has tokens.
    """
    torch.ops.emosteer.steer_stream_.default(
        hidden, residual, directions, rows, place, units, token_row, slots
    )


def traced(hidden: Tensor, residual: Tensor | None, *at: Any) -> Tensor:
    """`hidden` steered, as plain torch for a compiler to fuse with what stands around it; arguments as `steer_stream_`.

    The same on every device, without a look at a value from the host.
    """
    directions, rows, place, units, token_row, slots = at
    row = token_row[: hidden.shape[0]]
    own = rows[row.clamp(min=0).long()]
    word = own.gather(1, place[1].long().expand(row.shape[0], 1))[:, 0]
    acts = (row >= 0) & (((word >> place[2]) & 1) != 0)
    unit = units[own.gather(1, place[0].long().expand(row.shape[0], 1))[:, 0].long()]
    x = hidden if residual is None else hidden + residual
    y = formula.steer(x, directions, SteerTable.of_record(rows, slots), row, keep=acts, scale=unit)
    return torch.where((y != x).any(-1, keepdim=True), hidden + (y - x), hidden)


def entries_of(values: Tensor, hidden: Tensor, name: str = "token_row") -> Tensor:
    """The entries for the tokens of `hidden` of what has one a token."""
    if values.shape[0] < hidden.shape[0]:
        raise ValueError(
            f"{name} has {values.shape[0]} entries, a pass of {hidden.shape[0]} tokens needs one for each; "
            f"the engine runs longer passes than it said when it started"
        )
    return values[: hidden.shape[0]]


def _on_cpu(hidden: Tensor, residual: Tensor | None, *at: Any) -> None:
    directions, rows, place, units, token_row, slots = at
    row = entries_of(token_row, hidden)
    chosen = (row >= 0).nonzero()[:, 0]
    if not len(chosen):
        return
    unit_word, layer_word, bit = place.tolist()
    row = row[chosen]
    acts = (rows[row, layer_word] >> bit) & 1 != 0
    if not bool(acts.all()):
        chosen, row = chosen[acts], row[acts]
    numbers = rows[row, unit_word]
    table = SteerTable.of_record(rows, slots)
    for number in numbers.unique().tolist():  # one bank, as a rule
        mine = numbers == number
        everything = bool(mine.all())
        where, its = (chosen, row) if everything else (chosen[mine], row[mine])
        whole = len(where) == len(hidden)
        part = hidden if whole else hidden[where]
        x = part.clone() if residual is None else part + (residual if whole else residual[where])
        y = steer(x, directions, table, its, scale=float(units[number]))
        if whole:
            hidden += y - x
        else:
            hidden[where] = part + (y - x)


def on_gpu(hidden: Tensor, residual: Tensor | None, *at: Any) -> None:
    """One kernel, which reads nothing but `token_row` where no token is steered."""
    directions, rows, place, units, token_row, slots = at
    stream, token_row = import_module("emosteer.kernels.stream"), entries_of(token_row, hidden)
    if launchable(hidden, residual):
        views = rows, rows.view(torch.float32), rows.view(torch.uint8)
        launch = stream.launch(hidden, residual, directions, *views, place, units, token_row, slots)
        if launch is not None:
            with torch.cuda.device(hidden.device) if hidden.is_cuda else nullcontext():
                launch.run()
            return
    _elsewhere(hidden, residual, directions, rows, place, units, token_row, slots)


def launchable(hidden: Tensor, residual: Tensor | None) -> bool:
    """Whether there are rows, and they lie as kernels read them."""
    dense = hidden.stride(1) == 1 and (residual is None or residual.stride(1) == 1)
    return dense and hidden.shape[0] > 0


def _elsewhere(hidden: Tensor, *rest: Any) -> None:
    """On other devices: the definition itself, a few dozen small kernels, all of which a graph can capture."""
    hidden.copy_(traced(hidden, *rest))


_library.impl("steer_stream_", _on_cpu, "CPU")
_library.impl("steer_stream_", on_gpu, "CUDA")
_library.impl("steer_stream_", _elsewhere, "CompositeExplicitAutograd")


@torch.library.register_fake("emosteer::steer_stream_", lib=_library)
def _(hidden, *_rest):
    return None
