"""Which tokens of a batch are steered, and by which row of the table: one index vector a forward pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NO_ROW = -1


@dataclass(frozen=True)
class Prompt:
    """What `generate` was called with: which columns of the prompt are tokens, one row a prompt."""

    mask: Tensor  # bool [B, P]

    @property
    def length(self) -> Tensor:
        return self.mask.sum(1)

    def after(self, columns: int) -> Prompt:
        """The same prompt after so many columns of learned tokens, which count as its first ones."""
        return Prompt(nn.functional.pad(self.mask, (columns, 0), value=True)) if columns else self


def prompt_of(args: tuple, kwargs: dict[str, Any], pad: int | None, eos: Any) -> Prompt | None:
    """The prompt of a `generate` call, None where it has no tokens to look at.

    Without an attention mask, padding is what generate itself takes for it: the pad token, unless
    that also ends texts.
    """
    ids = kwargs.get("input_ids", kwargs.get("inputs", args[0] if args else None))
    if ids is None:
        ids = kwargs.get("inputs_embeds")
    if not isinstance(ids, Tensor) or ids.ndim < 2:
        return None
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == ids.shape[1]:
        return Prompt(mask != 0)
    ends = eos if isinstance(eos, (list, tuple)) else [eos]
    if ids.ndim == 2 and pad is not None and pad not in ends and bool((ids == pad).any()):
        return Prompt(ids != pad)
    return Prompt(torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device))


def virtual_tokens(model: Any) -> int:
    """How many learned columns a PEFT model puts in front of every text (prompt and prefix tuning)."""
    return getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0


class Positions:
    """The tokens that a steering acts on.

    A position counts a row's tokens from 0, leaving out padding; it is the same for a token with or
    without a KV cache, padded left or right, in one chunk or several. The prompt of a row is what
    `generate` was given; outside `generate`, the tokens of a forward pass that starts a sequence.

    Args:
        spec: "all"; "prompt" or "generated"; a slice of positions, negative numbers counting from
            the end of the prompt (`slice(-1, None)`: from its last token on); or a bool mask over
            positions, `[T]` or one row a program `[R, T]`, False beyond its end.
        rows: number of programs R.

    Raises:
        TypeError, ValueError: what came and what is understood.
    """

    def __init__(self, spec: Any, rows: int) -> None:
        if isinstance(spec, str):
            if spec not in ("all", "prompt", "generated"):
                raise ValueError(
                    f'positions must be "all", "prompt", "generated", a slice or a bool mask, got {spec!r}'
                )
            if spec == "prompt":
                spec = slice(0, None)  # bounded by the prompt's length below
                self.until_prompt_end = True
            else:
                self.until_prompt_end = False
                spec = slice(None) if spec == "all" else "generated"
        elif isinstance(spec, slice):
            self.until_prompt_end = False
            for name in ("start", "stop", "step"):
                value = getattr(spec, name)
                if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                    raise TypeError(f"positions.{name} must be an integer, got {value!r}")
            if spec.step is not None and spec.step < 1:
                raise ValueError(f"positions.step must be at least 1, got {spec.step}")
        else:
            self.until_prompt_end = False
            spec = torch.as_tensor(spec)
            if spec.dtype != torch.bool:
                raise TypeError(
                    f"a positions mask must be bool, got {str(spec.dtype).removeprefix('torch.')}"
                )
            if spec.ndim not in (1, 2) or (spec.ndim == 2 and spec.shape[0] != rows):
                raise ValueError(
                    f"a positions mask must have shape [T] or [{rows}, T], one row a program, got {list(spec.shape)}"
                )
        self.spec = spec
        self.rows = rows

    @property
    def everything(self) -> bool:
        return isinstance(self.spec, slice) and self.spec == slice(None)

    @property
    def needs_prompt(self) -> bool:
        """Whether the end of the prompt matters."""
        if isinstance(self.spec, slice):
            return self.until_prompt_end or (self.spec.start or 0) < 0 or (self.spec.stop or 0) < 0
        return isinstance(self.spec, str)

    def chosen(self, position: Tensor, prompt_length: Tensor | None, row: Tensor) -> Tensor:
        """Bool `[B, T]`: which of the positions `[B, T]` are acted on, in rows that have programs `row` `[B]`."""
        spec: Any = self.spec
        end: Any = None if prompt_length is None else prompt_length[:, None]  # there if `needs_prompt`
        if isinstance(spec, str):
            return position >= end
        if isinstance(spec, Tensor):
            mask = spec.to(position.device)
            inside = (position >= 0) & (position < mask.shape[-1])
            at = position.clamp(0, mask.shape[-1] - 1)
            if mask.ndim == 1:
                return inside & mask[at]
            return inside & mask[row.long()[:, None], at]
        start = spec.start or 0
        first = start if start >= 0 else (end + start).clamp(min=0)
        keep = position >= first
        if spec.stop is not None:
            keep &= position < (spec.stop if spec.stop >= 0 else end + spec.stop)
        if self.until_prompt_end:
            keep &= position < end
        if spec.step not in (None, 1):
            keep &= (position - first) % spec.step == 0
        return keep


def batch_rows(batch: int, rows: int, device: torch.device) -> Tensor:
    """int32 `[B]`: the program of each row of a batch that beams or several returned sequences may have grown."""
    if batch % rows:
        raise ValueError(
            f"the batch has {batch} rows, which do not divide evenly over the {rows} programs; "
            f"give one program, or one for each row"
        )
    return torch.arange(batch, dtype=torch.int32, device=device) // (batch // rows)


class TokenRows:
    """Computes `token_row` from what a decoder's `forward` is called with.

    Args:
        forward: the decoder's forward, whose parameter names tell positional arguments.
        positions: which tokens are acted on.
    """

    def __init__(self, forward: Callable, positions: Positions) -> None:
        self.names = [
            name
            for name, parameter in inspect.signature(forward).parameters.items()
            if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        ]
        self.positions = positions

    def call(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return {**dict(zip(self.names, args)), **kwargs}

    def __call__(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        prompt: Prompt | None,
        started: Tensor | None,
        outer_mask: Tensor | None = None,
        assigned: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """`(token_row, prompt length)` of a call.

        Args:
            args, kwargs: of the decoder's forward.
            prompt: of the `generate` call that this is part of.
            started: prompt length `[B]` of the sequences in the cache, from an earlier call.
            outer_mask: 2-D attention mask of the module around the decoder, for a decoder that is given none.
            assigned: int32 `[B]`, the program of each row, where the caller says so.

        Returns:
            int32 `[B, T]`, −1 where nothing is done, or None where every token is acted on and rows
            are spread evenly; and the prompt length for the calls that follow.
        """
        call = self.call(args, kwargs)
        tokens = _tokens(call)
        batch, length = tokens.shape[:2]
        device, rows = tokens.device, self.positions.rows
        mask = call.get("attention_mask")
        own = isinstance(mask, Tensor) and mask.ndim == 2
        if not own and outer_mask is not None and len(outer_mask) == batch and outer_mask.shape[1] >= length:
            mask = outer_mask
        row = batch_rows(batch, rows, device) if assigned is None else assigned.to(device)
        if len(row) != batch:
            raise ValueError(f"the batch has {batch} rows, {len(row)} were said to come")
        if self.positions.everything and (length == 1 or (mask is None and prompt is None)):
            if assigned is None:
                return None, started
            return row[:, None].expand(batch, length).to(torch.int32).contiguous(), started
        past = cached_columns(call)
        column, valid = _columns(batch, length, past, mask, call.get("position_ids"), prompt, device)
        ends = None
        if self.positions.needs_prompt:
            if prompt is not None:
                ends = prompt.length.repeat_interleave(batch // len(prompt.mask), output_size=batch)
            elif started is not None and isinstance(past, int) and past > 0:
                ends = started.repeat_interleave(batch // len(started), output_size=batch)
            else:
                ends = (column.masked_fill(~valid, -1).amax(1) + 1).to(device)
            ends = ends.to(device)
        keep = valid & self.positions.chosen(column, ends, row)
        return torch.where(keep, row[:, None], NO_ROW).to(torch.int32).contiguous(), ends


def _tokens(call: dict[str, Any]) -> Tensor:
    """Ids `[B, T]`, or what else a stack is given `[B, T, D]`, whatever that is called."""
    for name in ("input_ids", "inputs_embeds"):
        if call.get(name) is not None:
            return call[name]
    given = next((v for v in call.values() if isinstance(v, Tensor) and v.ndim == 3), None)
    if given is None:
        raise TypeError(
            f"the stack of blocks was called without token ids or embeddings, with {', '.join(call)}"
        )
    return given


def cached_columns(call: dict[str, Any]) -> int | Tensor:
    """How many columns the cache already holds."""
    at = call.get("cache_position")
    if isinstance(at, Tensor):
        return at[0]
    cache: Any = call.get("past_key_values")
    if hasattr(cache, "get_seq_length"):
        return cache.get_seq_length()
    if isinstance(cache, (tuple, list)) and cache and isinstance(cache[0][0], Tensor):
        return cache[0][0].shape[-2]
    return 0


def _columns(
    batch: int,
    length: int,
    past: int | Tensor,
    mask: Any,
    position_ids: Tensor | None,
    prompt: Prompt | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """`(position, valid)`, both `[B, T]`, of the tokens of a call; padding is not valid."""
    column = torch.arange(length, device=device) + past
    if isinstance(mask, Tensor) and mask.ndim == 2:
        token = mask.to(device) != 0
        if token.shape[1] == length:  # the mask of these tokens alone, or of a whole text
            whole = isinstance(past, int) and past == 0
            counted = token.cumsum(1) - 1
            return (counted if whole else counted + past), token
        return (token.cumsum(1) - 1).index_select(1, column), token.index_select(1, column)
    if prompt is not None:
        known = prompt.mask.to(device).repeat_interleave(batch // len(prompt.mask), 0)
        ended = known.shape[1]
        at = column.clamp(max=ended - 1)
        counted = known.cumsum(1).index_select(1, at) - 1 + (column - at)
        return counted, known.index_select(1, at) | (column >= ended)
    if isinstance(position_ids, Tensor) and position_ids.ndim == 2:
        position = position_ids.to(device).expand(batch, length)
    else:
        position = column.expand(batch, length)
    return position, torch.ones(batch, length, dtype=torch.bool, device=device)
