"""Which tokens a steering acts on, as numbers that eager and traced code read alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# Further than any text reaches.
ENDLESS = 2**40


class Positions:
    """The tokens that a steering acts on.

    A position counts a row's tokens from 0, leaving out padding; it is the same for a token with or
    without a KV cache, padded left or right, in one chunk or several. The prompt of a row is what
    `generate` was given; outside `generate`, the tokens of a forward pass that starts a sequence.
    The first generated token is drawn from the prompt's last position: "generated" leaves it alone,
    `slice(-1, None)` does not.

    Args:
        spec: "all"; "prompt" or "generated"; a slice of positions, negative numbers counting from
            the end of the prompt (`slice(-1, None)`: from its last token on); or a bool mask over
            positions, `[T]` or one row a program `[R, T]`, False beyond its end.
        rows: number of programs R.

    Attributes:
        numbers: `start, start counts from the prompt's end (0 or 1), stop, stop counts from there, step`.
        mask: bool `[1 or R, T]`, or None.

    Raises:
        TypeError, ValueError: what came and what is understood.
    """

    def __init__(self, spec: Any, rows: int) -> None:
        self.rows = rows
        self.mask: Tensor | None = None
        self.numbers = (0, 0, ENDLESS, 0, 1)
        if isinstance(spec, str):
            if spec not in ("all", "prompt", "generated"):
                raise ValueError(
                    f'positions must be "all", "prompt", "generated", a slice or a bool mask, got {spec!r}'
                )
            if spec == "prompt":
                self.numbers = (0, 0, 0, 1, 1)
            elif spec == "generated":
                self.numbers = (0, 1, ENDLESS, 0, 1)
        elif isinstance(spec, slice):
            self.numbers = _numbers(spec)
        else:
            self.mask = _mask(spec, rows)

    @property
    def everything(self) -> bool:
        """Whether every token is acted on."""
        return self.mask is None and self.numbers == (0, 0, ENDLESS, 0, 1)

    @property
    def needs_prompt(self) -> bool:
        """Whether the end of the prompt matters."""
        return bool(self.numbers[1] or self.numbers[3])

    @property
    def after_prompt(self) -> bool | None:
        """Whether what comes after a prompt is acted on: all of it, none, or (None) it depends."""
        start, from_end, stop, to_end, step = self.numbers
        if self.mask is not None:
            return None
        if to_end and stop <= 0:
            return False
        return True if from_end and start <= 0 and stop == ENDLESS and step == 1 else None


def chosen(position: Tensor, ends: Any, numbers: Sequence[Any]) -> Tensor:
    """Bool `[B, T]`: which of the positions `[B, T]` lie where `Positions.numbers` say.

    Args:
        position: of each token in its text.
        ends: `[B, 1]`, the lengths of the prompts; 0 where they do not matter.
        numbers: integers, or int64 scalars.
    """
    start, from_end, stop, to_end, step = numbers
    first = start + from_end * ends
    first = first.clamp(min=0) if isinstance(first, Tensor) else max(first, 0)
    keep = (position >= first) & (position < stop + to_end * ends)
    return keep & ((position - first) % step == 0)


def masked(position: Tensor, row: Tensor, mask: Tensor) -> Tensor:
    """Bool `[B, T]`: which of the positions `[B, T]` a mask `[1 or R, T]` takes, in texts of programs `row` `[B]`."""
    inside = (position >= 0) & (position < mask.shape[1])
    at = position.clamp(0, mask.shape[1] - 1).long()
    of = row.clamp(0, mask.shape[0] - 1).long()[:, None]
    return inside & mask[of, at]


def edges(mask: Tensor) -> Tensor:
    """int64 `[2·runs]`: where the runs of a mask `[T]` begin and end, ascending.

    A position lies inside where an odd number of edges is not beyond it.
    """
    off = mask.new_zeros(1)
    return torch.cat([off, mask, off]).to(torch.int8).diff().nonzero()[:, 0]


def _numbers(spec: slice) -> tuple[int, int, int, int, int]:
    for name in ("start", "stop", "step"):
        value = getattr(spec, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"positions.{name} must be an integer, got {value!r}")
    step = 1 if spec.step is None else spec.step
    if step < 1:
        raise ValueError(f"positions.step must be at least 1, got {step}")
    start = spec.start or 0
    stop = ENDLESS if spec.stop is None else min(spec.stop, ENDLESS)
    return start, int(start < 0), stop, int(stop < 0), step


def _mask(spec: Any, rows: int) -> Tensor:
    mask = torch.as_tensor(spec)
    if mask.dtype != torch.bool:
        raise TypeError(f"a positions mask must be bool, got {str(mask.dtype).removeprefix('torch.')}")
    if mask.ndim not in (1, 2) or (mask.ndim == 2 and mask.shape[0] != rows) or not mask.shape[-1]:
        raise ValueError(
            f"a positions mask must have shape [T] or [{rows}, T], one row a program, got {list(mask.shape)}"
        )
    mask = mask.detach().clone()
    return mask[None] if mask.ndim == 1 else mask
