"""Which row of the table each token of a pass takes: one index vector a pass, shared by all layers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .caches import KEYS, RECURRENT, Filled
from .positions import ENDLESS, Positions, chosen, masked
from .sequences import ASSIGNED, CAPACITY, COLUMNS, PROMPTS, STARTED, WHOLE, Sequences

NO_ROW = -1
# More columns than any text has, for one whose first pass was not seen.
UNKNOWN = 2**62
UNCOUNTED = (
    "the cache of recurrent states holds tokens that this steering did not see, and does not say how many: their "
    "positions cannot be told. Run the whole text inside the steering, uncompiled; or give cache_position, or an "
    'attention_mask of the whole text; or steer positions="all"'
)


class Idle:
    """Stands for a pass in which no token is acted on."""


IDLE = Idle()


@dataclass
class Chosen:
    """What traced code reads of a steering's positions: tensors that change while its graph stays.

    Attributes:
        numbers: int64 `[7]`: of `Positions`, the number of programs R, and whether the mask counts.
        mask: bool `[at least R, T]`.
    """

    numbers: Tensor
    mask: Tensor


def batch_rows(batch: int, rows: int, device: torch.device) -> Tensor:
    """int32 `[B]`: the program of each row of a batch that beams or several returned sequences may have grown."""
    if batch % rows:
        raise ValueError(
            f"the batch has {batch} rows, which do not divide evenly over the {rows} programs; "
            f"give one program, or one for each row"
        )
    return torch.arange(batch, dtype=torch.int32, device=device) // (batch // rows)


class TokenRows:
    """Computes the table row of each token from what a decoder's `forward` is called with.

    Args:
        forward: the decoder's forward, whose parameter names tell positional arguments.
        positions: which tokens are acted on.
    """

    def __init__(self, forward: Callable, positions: Positions) -> None:
        self.names = parameter_names(forward)
        self.positions = positions
        self.filled = Filled(self.names)

    def call(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return {**dict(zip(self.names, args)), **kwargs}

    def __call__(
        self,
        call: dict[str, Any],
        sequences: Sequences,
        outer_mask: Tensor | None = None,
        *,
        idle: bool = True,
    ) -> Tensor | Idle | None:
        """`token_row` of a pass that runs eagerly.

        Args:
            call: arguments of the decoder's forward by name.
            sequences: what is known of the texts; a pass that starts some is noted there.
            outer_mask: 2-D attention mask of the module around the decoder, for a decoder that is given none.
            idle: whether a pass may be told to be idle.

        Returns:
            int32 `[B, T]`, −1 where nothing is done; None where every token is acted on and rows are
            spread evenly; `IDLE` where no token is, if `idle`.

        Raises:
            ValueError: a batch that does not fit the programs, or what was said of it; a cache that does not
                say how many tokens it holds, where that matters.
        """
        positions, prompt, assigned = self.positions, sequences.prompt, sequences.assigned
        tokens = tokens_of(call)
        batch, length = tokens.shape[:2]
        mask = _mask_of(call, outer_mask, batch, length)
        past = _columns(self.filled.columns(call), mask, length)
        everything = positions.everything and (length == 1 or (mask is None and prompt is None))
        if (
            length == 1
            and not everything
            and isinstance(past, int)
            and past
            and past >= (sequences.columns or UNKNOWN)
        ):
            later = positions.after_prompt
            if later is False and idle:
                return IDLE
            everything = later is True
        if everything:
            if assigned is None:
                if batch % positions.rows:
                    batch_rows(batch, positions.rows, tokens.device)
                return None
            row = _fitting(assigned, batch, tokens.device)
            return row[:, None].expand(batch, length).contiguous()
        if assigned is None:
            row = batch_rows(batch, positions.rows, tokens.device)
        else:
            row = _fitting(assigned, batch, tokens.device)
        if past is None:
            raise ValueError(UNCOUNTED)
        at = _locate(call, batch, length, past, mask, sequences, tokens.device, traced=False)
        ends: Any = 0
        if positions.needs_prompt:
            if prompt is not None:
                ends = prompt.length.to(tokens.device).repeat_interleave(
                    batch // len(prompt.mask), output_size=batch
                )
            else:
                ends = _ends(at, past, sequences, batch)
                if isinstance(past, int) and past == 0:
                    sequences.columns = length
            ends = ends[:, None]
        keep = at.valid & chosen(at.position, ends, positions.numbers)
        if positions.mask is not None:
            keep &= masked(at.position, row, positions.mask.to(tokens.device))
        return torch.where(keep, row[:, None], NO_ROW).to(torch.int32).contiguous()


def traced_rows(
    call: dict[str, Any], sequences: Sequences, picks: Chosen, outer_mask: Tensor | None, filled: Filled
) -> tuple[Tensor, Tensor]:
    """`(row int32 [B, 1], keep bool [B, T])` of a pass that is traced: tensors decide, no value read by Python.

    Arguments as of `TokenRows.__call__`. A batch that does not fit the programs, or what was said of it,
    stops the run when it reaches the check.
    """
    tokens = tokens_of(call)
    batch, length = tokens.shape[:2]
    if batch > CAPACITY:
        raise ValueError(
            f"a batch of {batch} rows under torch.compile; there is room for {CAPACITY}: split it"
        )
    device = tokens.device
    mask = _mask_of(call, outer_mask, batch, length)
    past = _columns(filled.columns(call), mask, length)
    counts = sequences.counts.to(device)
    index = torch.arange(batch, device=device)
    *numbers, spread, only = picks.numbers.to(device).unbind()
    assigned = counts[ASSIGNED] > 0
    torch._assert_async(
        torch.where(assigned, counts[ASSIGNED] == batch, torch.remainder(batch, spread) == 0),
        "the rows of the batch do not divide evenly over the programs, or are not as many as steering.batch was told",
    )
    row = torch.where(assigned, sequences.rows[:batch].to(device), (index * spread // batch).to(torch.int32))
    if past is None:
        start, from_end, stop, to_end, step = numbers
        everything = (start + from_end + to_end + only == 0) & (stop >= ENDLESS) & (step == 1)
        torch._assert_async(everything, UNCOUNTED)
        return row[:, None], torch.ones(batch, length, dtype=torch.bool, device=device)
    at = _locate(call, batch, length, past, mask, sequences, device, traced=True)
    of = index * counts[PROMPTS] // batch
    ends = torch.where(
        counts[PROMPTS] > 0, sequences.length.to(device)[of], _ends(at, past, sequences, batch)
    )
    keep = at.valid & chosen(at.position, ends[:, None], numbers)
    taken = masked(at.position, row, picks.mask.to(device)) | (only == 0)
    return row[:, None], keep & taken


@dataclass
class _Located:
    position: Tensor  # int64 [B, T]
    valid: Tensor  # bool [B, T]; padding is not


def _locate(
    call: dict[str, Any],
    batch: int,
    length: int,
    past: Any,
    mask: Tensor | None,
    sequences: Sequences,
    device: torch.device,
    *,
    traced: bool,
) -> _Located:
    column = torch.arange(length, device=device) + past
    if mask is not None:
        token = mask.to(device) != 0
        width = token.shape[1]
        counted = token.cumsum(1) - 1
        if width == length:  # the mask of these tokens alone, or of a whole text
            return _Located(counted + past, token)
        at = column.clamp(max=width - 1)
        return _Located(counted[:, at] + (column - at), token[:, at] | (column >= width))
    given = call.get("position_ids")
    if isinstance(given, Tensor) and given.ndim == 2:
        position = given.to(device).expand(batch, length)
    else:
        position = column.expand(batch, length)
    everywhere = torch.ones(batch, length, dtype=torch.bool, device=device)
    if not traced:
        if sequences.prompt is None:
            return _Located(position, everywhere)
        known = sequences.prompt.mask.to(device)
        known = known.repeat_interleave(batch // len(known), 0)
        at = column.clamp(max=known.shape[1] - 1)
        counted = known.cumsum(1)[:, at] - 1 + (column - at)
        return _Located(counted, known[:, at] | (column >= known.shape[1]))
    counts = sequences.counts.to(device)
    of = torch.arange(batch, device=device) * counts[PROMPTS] // batch
    first, tokens = sequences.first.to(device)[of][:, None], sequences.length.to(device)[of][:, None]
    prompted, after = counts[PROMPTS] > 0, column >= counts[COLUMNS]
    torch._assert_async(
        ~prompted | (counts[WHOLE] > 0) | after.all(),
        "a prompt with padding between its tokens can be steered under torch.compile only where the model is "
        "given its two-dimensional attention mask",
    )
    counted = torch.where(after, tokens + column - counts[COLUMNS], column - first)
    inside = after | ((column >= first) & (column < first + tokens))
    return _Located(torch.where(prompted, counted, position), ~prompted | inside)


def _ends(at: _Located, past: Any, sequences: Sequences, batch: int) -> Tensor:
    """`[B]`: the tokens of the pass that started each sequence, which may be this one."""
    own = at.position.masked_fill(~at.valid, -1).amax(1) + 1
    if isinstance(past, int) and past == 0:
        sequences.begin(own)
        return own
    counts = sequences.counts
    of = torch.arange(batch, device=counts.device) * counts[STARTED].clamp(min=1) // batch
    before = sequences.started[of].to(own.device)
    if isinstance(past, int):  # nothing was seen to start them where nothing was noted
        return torch.where((counts[STARTED] > 0).to(own.device), before, own)
    ends = torch.where((past > 0) & (counts[STARTED] > 0).to(own.device), before, own)
    sequences.begin(ends.to(counts.device))
    return ends


def _fitting(assigned: Tensor, batch: int, device: torch.device) -> Tensor:
    if len(assigned) != batch:
        raise ValueError(f"the batch has {batch} rows, {len(assigned)} were said to come")
    return assigned.to(device)


def _columns(told: int | Tensor | None, mask: Tensor | None, length: int) -> int | Tensor | None:
    """The columns before a pass: as the cache says, else by a mask of the whole text."""
    if told is None and mask is not None and mask.shape[1] > length:
        return mask.shape[1] - length
    return told


def _mask_of(call: dict[str, Any], outer_mask: Tensor | None, batch: int, length: int) -> Tensor | None:
    """The two-dimensional attention mask of a pass: its own, or that of the module around it."""
    own = call.get("attention_mask")
    if isinstance(own, Tensor) and own.ndim == 2:
        return own
    if outer_mask is not None and outer_mask.shape[0] == batch and outer_mask.shape[1] >= length:
        return outer_mask
    return None


def parameter_names(forward: Callable) -> list[str]:
    """The names of the parameters that a function takes by position."""
    return [
        name
        for name, parameter in inspect.signature(forward).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]


# Arguments of a stack that are about the text alone.
TEXT = frozenset(
    ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "cache_position", *KEYS, *RECURRENT)
)


def more_than_text(call: dict[str, Any], known: frozenset[str]) -> list[str]:
    """Names of the arguments of a stack that may change the stream between its blocks: images, say, or what was
    heard.

    Args:
        call: the arguments by name.
        known: names that are not counted.
    """
    return [
        name
        for name, value in call.items()
        if value is not None
        and name not in TEXT
        and name not in known
        and not isinstance(value, (bool, int, float, str))
    ]


def tokens_of(call: dict[str, Any]) -> Tensor:
    """Ids `[B, T]`, or what else a stack is given `[B, T, D]`, whatever that is called."""
    for name in ("input_ids", "inputs_embeds"):
        if call.get(name) is not None:
            return call[name]
    for value in call.values():
        if isinstance(value, Tensor) and value.ndim == 3:
            return value
    raise TypeError(f"the stack of blocks was called without token ids or embeddings, with {', '.join(call)}")
