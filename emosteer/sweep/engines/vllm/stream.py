"""The residual stream inside vLLM's model: every request steered by its own row, and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emosteer import ops
from emosteer.bank import Bank
from emosteer.models.positions import Positions, chosen, masked
from emosteer.models.table_rows import TableRows

from ...plan.identity import positions_of
from ..local.held_rows import NO_ROW, TABLE_ROWS
from .notes import Note


@dataclass
class _Pass:
    """A forward pass: where each request's tokens lie, `[start, end)`, its first one's position, and its note."""

    spans: list[tuple[int, int, int, Note]]
    token_row: Tensor | None

    @property
    def reads(self) -> bool:
        return any(note.read is not None for *_, note in self.spans)


class Stream:
    """Hooks on the model of one vLLM worker.

    The blocks of vLLM hand the stream along in two parts, `(hidden, residual)`, which the next
    norm adds; a steered block hands on `(0, steered)`, or the stream itself where it is one tensor.

    Args:
        runner: vLLM's model runner, which knows the requests of a pass.
        bank: the directions.
        relative: strengths are fractions of each token's own norm.
        readings: for each, a layer and the directions `[K, D]` that the stream after it is projected on.

    Raises:
        RuntimeError: a runner or model of another build than this was written for; what is missing.
    """

    def __init__(
        self, runner: Any, bank: Bank, relative: bool, readings: Sequence[tuple[int, Tensor]]
    ) -> None:
        for name in ("input_batch", "requests", "query_start_loc", "get_model"):
            if not hasattr(runner, name):
                raise RuntimeError(
                    f"this release of vLLM runs models with {type(runner).__name__}, which has no {name!r}; "
                    f"docs/sweeps.md names the release that is supported"
                )
        self.runner, self.bank, self.relative = runner, bank, relative
        self.model: nn.Module = runner.get_model()
        self.blocks = _blocks(self.model, runner.model_config.get_total_num_hidden_layers())
        self.device = next(self.model.parameters()).device
        self._sums: dict[tuple[str, int], Tensor] = {}
        self._readings = [(layer, v.to(self.device, torch.float32)) for layer, v in readings]
        self._positions: Positions | None = None
        self._rows: TableRows | None = None
        self._now: _Pass | None = None
        self._first = self.model.register_forward_pre_hook(self._begin, with_kwargs=True)
        self._hooks: list[Any] = []

    def place(self, layers: list[int], positions: str, slots: int) -> None:
        """Steer at these blocks and positions from now on, with an empty table."""
        self._positions = Positions(positions_of(positions), TABLE_ROWS)
        self._rows = TableRows(
            self.bank.index, TABLE_ROWS, slots, device=self.device, preserve_norm=True, relative=self.relative
        )
        for hook in self._hooks:
            hook.remove()
        self._hooks = [
            self.blocks[layer].register_forward_hook(self._block_hook(layer, steered=layer in layers))
            for layer in sorted({*layers, *(layer for layer, _ in self._readings)})
        ]

    def set(self, row: int, program: Any) -> None:
        """Put a program into a row of the table."""
        assert self._rows is not None
        self._rows.write([row], [program])

    def sums(self, key: str) -> list[list[float]]:
        """For each reading the summed projections of what was read under a key, which is forgotten."""
        return [self._sums.pop((key, number)).tolist() for number in range(len(self._readings))]

    def _begin(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before the first block: which requests run, and which row of the table each token takes."""
        from vllm.forward_context import get_forward_context

        self._now = None
        if get_forward_context().attn_metadata is None:  # vLLM tries the model out; nobody's tokens
            return
        names = self.runner.input_batch.req_ids
        ends = self.runner.query_start_loc.cpu[: len(names) + 1].tolist()
        notes = [Note.of(self.runner.requests[name].sampling_params) or Note() for name in names]
        position = kwargs["positions"] if "positions" in kwargs else args[1]
        if position.ndim != 1:
            raise RuntimeError(
                f"positions of shape {list(position.shape)} cannot be steered: expected [tokens]"
            )
        row = torch.full((len(position),), NO_ROW, dtype=torch.int32)
        prompt = torch.zeros(len(position), dtype=torch.int64)
        for note, start, end in zip(notes, ends, ends[1:]):
            row[start:end], prompt[start:end] = note.row, note.prompt
        token_row = None
        if self._positions is not None and bool((row != NO_ROW).any()):
            row, prompt = row.to(self.device), prompt.to(self.device)
            numbers, mask = self._positions.numbers, self._positions.mask
            at = position[:, None].long()
            acted = chosen(at, prompt[:, None], numbers)[:, 0]
            if mask is not None:
                acted &= masked(at, row, mask.to(self.device))[:, 0]
            token_row = torch.where(acted, row, NO_ROW).to(torch.int32)
        first = position[ends[:-1]].tolist()
        self._now = _Pass(list(zip(ends, ends[1:], first, notes)), token_row)

    def _block_hook(self, layer: int, *, steered: bool) -> Any:
        directions = self.bank.directions[layer].to(self.device) if steered else None
        scale = 1.0 if self.relative or not steered else float(self.bank.scale[layer])

        def hook(_module: nn.Module, _args: tuple, output: Any) -> Any:
            now = self._now
            if now is None:
                return None
            steers = directions is not None and now.token_row is not None
            if not now.reads and not steers:
                return None
            hidden, residual = output if isinstance(output, tuple) else (output, None)
            stream = hidden + residual if residual is not None else hidden.clone()
            if now.reads:
                self._read(layer, stream, now)
            if not steers:
                return None
            assert directions is not None
            assert self._rows is not None
            ops.steer_(stream, directions, self._rows.table, now.token_row, scale=scale)
            if residual is not None:
                return torch.zeros_like(hidden), stream
            return (stream, None) if isinstance(output, tuple) else stream

        return hook

    def _read(self, layer: int, stream: Tensor, now: _Pass) -> None:
        for number, (at, directions) in enumerate(self._readings):
            if at != layer:
                continue
            for start, end, position, note in now.spans:
                begin = start + max(note.prompt - position, 0)
                if note.read is None or begin >= end:
                    continue
                found = ops.project(stream[begin:end].contiguous(), directions).sum(0).double()
                key = (note.read, number)
                if position > note.prompt:  # else it starts, perhaps anew: vLLM runs some requests twice
                    found += self._sums[key]
                self._sums[key] = found


def _blocks(model: nn.Module, depth: int) -> nn.ModuleList:
    """The list of the model's blocks.

    Raises:
        RuntimeError: none of that length.
    """
    lists = [child for child in model.modules() if isinstance(child, nn.ModuleList) and len(child) == depth]
    if len(lists) != 1:
        raise RuntimeError(
            f"vLLM's {type(model).__name__} has {len(lists)} lists of {depth} blocks, so emosteer does not know "
            f'where its residual stream is; use engine="local"'
        )
    return lists[0]
