"""What a monitor keeps: running scores of the prompt and of what follows, turn by turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Alarm:
    """A reading that passed its threshold, the first time in a turn for that row and concept.

    Attributes:
        concept, layer: what was read where.
        row: of the batch.
        turn: 0 for the first `generate` (or the passes before it), 1 for the next, …
        token: number of the token in its turn, counting the prompt's, padding left out.
        z: the reading.
    """

    concept: str
    layer: int
    row: int
    turn: int
    token: int
    z: float


class Running:
    """Count, mean, maximum and last of the z-scores of a stretch of tokens, `[B, K]` each.

    Attributes:
        names: the K concepts.
        count: int64 `[B]`, tokens.
        max, last: float32 `[B, K]`; −inf and NaN before the first token.
    """

    def __init__(self, names: tuple[str, ...], batch: int, device: torch.device) -> None:
        shape = (batch, len(names))
        self.names = names
        self.count = torch.zeros(batch, dtype=torch.long, device=device)
        self._sum = torch.zeros(shape, dtype=torch.float64, device=device)
        self.max = torch.full(shape, -torch.inf, device=device)
        self.last = torch.full(shape, torch.nan, device=device)

    @property
    def mean(self) -> Tensor:
        """float32 `[B, K]`, NaN where no token was counted."""
        return (self._sum / self.count[:, None]).float()

    def update(self, z: Tensor, valid: Tensor | None) -> None:
        """Add the scores `[B, T, K]` of the tokens that are `valid` `[B, T]` (None: all)."""
        if valid is None:
            self.count += z.shape[1]
            self._sum += z.sum(1) if z.shape[1] > 1 else z[:, 0]
            torch.maximum(self.max, z.amax(1), out=self.max)
            self.last.copy_(z[:, -1])
            return
        self.count += valid.sum(1)
        self._sum += torch.where(valid[..., None], z, 0.0).sum(1)
        torch.maximum(self.max, torch.where(valid[..., None], z, -torch.inf).amax(1), out=self.max)
        newest = valid.shape[1] - 1 - valid.flip(1).to(torch.int8).argmax(1)
        some = valid.any(1, keepdim=True)
        at = newest[:, None, None].expand(-1, 1, z.shape[2])
        self.last.copy_(torch.where(some, z.gather(1, at)[:, 0], self.last))

    def top(self, n: int = 5, row: int = 0) -> list[tuple[str, float]]:
        """The concepts with the highest mean in a row, with it."""
        values, at = self.mean[row].topk(min(n, len(self.names)))
        return [(self.names[k], float(v)) for k, v in zip(at.tolist(), values)]


class Turn:
    """One `generate` call, or one sequence of forward passes outside any.

    Attributes:
        prompt: layer → `Running` over the prompt's tokens.
        generated: layer → `Running` over the tokens after it.
        batch: rows.
    """

    def __init__(
        self, names: tuple[str, ...], layers: tuple[int, ...], batch: int, prompt: int, device: torch.device
    ) -> None:
        self.batch = batch
        self.prompt = {layer: Running(names, batch, device) for layer in layers}
        self.generated = {layer: Running(names, batch, device) for layer in layers}
        self.alarmed = {layer: torch.zeros(batch, len(names), dtype=torch.bool) for layer in layers}
        self._prompt_columns = prompt
        self._seen = 0  # columns that were counted

    @property
    def seen(self) -> int:
        """Columns that were counted."""
        return self._seen

    def new_columns(self, past: int, length: int) -> tuple[slice, slice]:
        """Which columns of a pass belong to the prompt and which to the rest, those counted before left out."""
        first = min(max(self._seen - past, 0), length)
        split = min(max(self._prompt_columns - past, first), length)
        self._seen = max(self._seen, past + length)
        return slice(first, split), slice(split, length)
