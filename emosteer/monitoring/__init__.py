"""Watching emotions while a model runs: z-scores per row, and an alarm where one is passed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emosteer.bank import Bank
from emosteer.models.blocks import check_layers, find_decoder, probing, resolve_layers
from emosteer.models.capture import layer_at_two_thirds
from emosteer.models.patching import Patches, first_tensor, unwrap
from emosteer.models.positions import Positions
from emosteer.models.prompts import Prompt, prompt_of
from emosteer.models.sequences import Sequences
from emosteer.models.token_rows import TokenRows, tokens_of
from emosteer.ops.tracing import untraced
from emosteer.zscores import ZScores

from .turns import Alarm, Running, Turn

__all__ = ["Alarm", "Monitor", "Running", "Turn", "monitor"]


def monitor(
    model: Any,
    bank: Bank,
    thresholds: Mapping[str, float] | None = None,
    *,
    concepts: Iterable[str] | None = None,
    layers: Any = None,
    on_alarm: Callable[[Alarm], Any] | None = None,
    on_scores: Callable[[int, Tensor, Tensor | None], Any] | None = None,
) -> Monitor:
    """Read a model while it runs: `with es.monitor(model, bank, {"desperate": 3.0}) as m: …`.

    Per row, concept and layer it keeps count, mean, maximum and last of the z-scores (`ZScores`), for
    the prompt and for what was generated; memory does not grow with the text. A model that is steered
    is read as steered, whichever came first. The blocks of a compiled model run eagerly
    meanwhile; one that is compiled with `fullgraph=True` says that it cannot.

    Args:
        model: any decoder.
        bank: with statistics, as `es.extract` makes it.
        thresholds: concept → z above which an `Alarm` is raised (appended to `alarms`, and passed to
            `on_alarm`, whose exceptions stop the run).
        concepts: what is read; the bank's concepts by default.
        layers: where; the bank's layer nearest to two thirds of the depth by default.
        on_alarm: called once a turn for each row and concept that passes its threshold.
        on_scores: called with `(layer, z [B, T, K], valid [B, T] or None)` for each pass, for callers
            who keep more; the tensors are theirs.

    Raises:
        TypeError, ValueError: before anything is patched; the message names the argument.
    """
    return Monitor(model, bank, thresholds, concepts, layers, on_alarm, on_scores)


class Monitor:
    """What `monitor` returns: patched on entering `with`, restored on leaving it.

    Attributes:
        turns: one `Turn` for each `generate` call so far.
        alarms: in the order in which they were raised.
    """

    def __init__(
        self,
        model: Any,
        bank: Bank,
        thresholds: Mapping[str, float] | None,
        concepts: Iterable[str] | None,
        layers: Any,
        on_alarm: Callable[[Alarm], Any] | None,
        on_scores: Callable[[int, Tensor, Tensor | None], Any] | None,
    ) -> None:
        if not isinstance(bank, Bank):
            raise TypeError(f"bank must be an emosteer Bank, got {type(bank).__name__}")
        thresholds = {} if thresholds is None else dict(thresholds)
        names = bank.names if concepts is None else tuple(concepts)
        names = (*names, *(name for name in thresholds if name not in names))
        for name, z in thresholds.items():
            if isinstance(z, bool) or not isinstance(z, (int, float)) or z != z:
                raise ValueError(f"thresholds[{name!r}] must be a number, got {z!r}")
        self.entry, self.model = model, unwrap(model)
        self.decoder = find_decoder(self.model)
        if bank.dim != self.decoder.dim:
            raise ValueError(
                f"the bank has directions of width {bank.dim}, the residual stream has {self.decoder.dim}"
            )
        depth = self.decoder.depth
        check_layers(bank.layers, depth)
        at = (layer_at_two_thirds(bank.layers, depth),) if layers is None else resolve_layers(layers, depth)
        self.scores = {layer: ZScores(bank, layer, names) for layer in at}
        self.names, self.layers = names, tuple(at)
        self.on_alarm, self.on_scores = on_alarm, on_scores
        limits = torch.full((len(names),), torch.inf)
        for name, z in thresholds.items():
            limits[names.index(name)] = z
        self._limits = limits if thresholds else None
        self._limits_on: dict[torch.device, Tensor] = {}
        self.turns: list[Turn] = []
        self.alarms: list[Alarm] = []
        self._patches: Patches | None = None
        self._local = _Watching()

    def attach(self) -> Monitor:
        """Patch the model."""
        if self._patches is not None:
            raise RuntimeError("this monitor is attached already; detach it first, or make another one")
        patches = Patches()
        try:
            if hasattr(self.entry, "generate"):
                patches.replace(self.entry, "generate", partial(self._generate, patches=patches))
            patches.replace(self.decoder.stack, "forward", partial(self._stack_forward, patches=patches))
            for layer, block in enumerate(self.decoder.blocks):
                if layer in self.scores or layer - 1 in self.scores:
                    patches.replace(
                        block, "forward", partial(self._block_forward, patches=patches, layer=layer)
                    )
        except BaseException:
            patches.undo()
            raise
        self._patches = patches
        return self

    def detach(self) -> None:
        """Restore the model exactly."""
        patches, self._patches = self._patches, None
        if patches is not None:
            patches.undo()

    def __enter__(self) -> Monitor:
        return self.attach()

    def __exit__(self, *_error) -> None:
        self.detach()

    # ---- the patches ------------------------------------------------------------------------------

    def _generate(self, original: Callable, patches: Patches) -> Callable:
        def generate(*args: Any, **kwargs: Any) -> Any:
            now = self._local
            if not patches.active or now.generating:
                return original(*args, **kwargs)
            asked = kwargs.get("generation_config") or getattr(self.model, "generation_config", None)
            pad = kwargs.get("pad_token_id", getattr(asked, "pad_token_id", None))
            eos = kwargs.get("eos_token_id", getattr(asked, "eos_token_id", None))
            now.prompt, now.generating, now.turn = prompt_of(args, kwargs, pad, eos), True, None
            try:
                return original(*args, **kwargs)
            finally:
                now.prompt, now.generating, now.turn = None, False, None

        return generate

    def _stack_forward(self, original: Callable, patches: Patches) -> Callable:
        token_rows = TokenRows(original, Positions("all", 1))

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not patches.active or probing():
                return original(*args, **kwargs)
            now = self._local
            call = token_rows.call(args, kwargs)
            device = tokens_of(call).device
            if now.texts is None or now.texts.device != device:
                now.texts = Sequences(device)
            now.texts.prompt = now.prompt
            rows = token_rows(call, now.texts)
            now.valid = rows >= 0 if isinstance(rows, Tensor) else None
            held = token_rows.filled.columns(call)
            now.past, now.uncounted = int(held or 0), held is None
            now.watching, now.fresh = True, True
            try:
                output = original(*args, **kwargs)
                token_rows.filled.saw(call, output, tokens_of(call).shape[1])
                self._read(now)
                self._check_step(now)
                return output
            finally:
                now.watching, now.valid = False, None
                now.waiting.clear()
                now.unchecked.clear()

        return untraced(forward, reason="es.monitor reads the blocks of a model as they run")

    def _block_forward(self, original: Callable, patches: Patches, layer: int) -> Callable:
        """Remember a block's output, and read it when the next block has run.

        Only then has every steering of that stream happened: one that is fused into the norm which
        reads it happens inside the next block.
        """

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            now = self._local
            if now.watching and patches.active:
                self._read(now)
                if layer in self.scores:
                    now.waiting[layer] = _hidden(output)
            return output

        return untraced(forward, reason="es.monitor reads the blocks of a model as they run")

    # ---- reading ----------------------------------------------------------------------------------

    @torch.no_grad()
    def _read(self, now: _Watching) -> None:
        for layer, hidden in now.waiting.items():
            z = self.scores[layer](hidden.detach())
            batch, length = z.shape[:2]
            if now.fresh:
                self._begin(now, batch, length, z.device)
            turn = now.turn
            assert turn is not None
            for running, part in zip((turn.prompt[layer], turn.generated[layer]), now.parts):
                if part.start == part.stop:
                    continue
                whole = part == slice(0, length)
                scores = z if whole else z[:, part]
                valid = now.valid if whole or now.valid is None else now.valid[:, part]
                if self._limits is not None and length > 1:
                    self._check(turn, layer, scores, valid, self._over(scores, valid).any(1).cpu())
                running.update(scores, valid)
                if self._limits is not None and length == 1:
                    now.unchecked.append((turn, layer, scores, valid))
            if self.on_scores is not None:
                self.on_scores(layer, z, now.valid)
        now.waiting.clear()

    def _begin(self, now: _Watching, batch: int, length: int, device: torch.device) -> None:
        """Find the turn that a pass belongs to, and which of its columns are new."""
        turn = now.turn
        # A cache may not say how many columns it holds; a pass without a cache repeats them all.
        same = turn is not None and turn.batch == batch and length <= turn.seen
        if turn is not None and same and now.past == 0 and (now.generating or now.uncounted):
            now.past = turn.seen
        if turn is None or turn.batch != batch or (not now.generating and now.past == 0):
            prompt = length if now.prompt is None else now.prompt.mask.shape[1]
            turn = now.turn = Turn(self.names, self.layers, batch, prompt, device)
            self.turns.append(turn)
        now.parts = turn.new_columns(now.past, length)
        now.fresh = False

    def _over(self, z: Tensor, valid: Tensor | None) -> Tensor:
        """Bool `[B, T, K]`: which readings pass their threshold."""
        limits = self._limits_on.get(z.device)
        if limits is None:
            assert self._limits is not None
            limits = self._limits_on[z.device] = self._limits.to(z.device)
        over = z > limits
        return over if valid is None else over & valid[..., None]

    @torch.no_grad()
    def _check_step(self, now: _Watching) -> None:
        """Look for alarms in a step of one token, all layers by one copy from each device."""
        by_device: dict[torch.device, list[Tensor]] = {}
        for _, _, z, valid in now.unchecked:
            by_device.setdefault(z.device, []).append(self._over(z, valid).any(1))
        found = {device: iter(torch.stack(over).cpu()) for device, over in by_device.items()}
        for turn, layer, z, valid in now.unchecked:
            self._check(turn, layer, z, valid, next(found[z.device]), counted=True)
        now.unchecked.clear()

    def _check(
        self,
        turn: Turn,
        layer: int,
        z: Tensor,
        valid: Tensor | None,
        passed: Tensor,
        *,
        counted: bool = False,
    ) -> None:
        """Raise an alarm for each row and concept that `passed` for the first time; `counted`: the turn has `z`."""
        new = passed & ~turn.alarmed[layer]
        if not new.any():
            return
        turn.alarmed[layer] |= new
        first = self._over(z, valid).to(torch.int8).argmax(1)
        for row, k in new.nonzero().tolist():
            column = int(first[row, k])
            before = column if valid is None else int(valid[row, :column].sum())
            seen = int(turn.prompt[layer].count[row] + turn.generated[layer].count[row])
            if counted:
                seen -= 1
            alarm = Alarm(
                self.names[k], layer, row, self.turns.index(turn), seen + before, float(z[row, column, k])
            )
            self.alarms.append(alarm)
            if self.on_alarm is not None:
                self.on_alarm(alarm)


def _hidden(output: Any) -> Tensor:
    hidden = first_tensor(output)
    if hidden is None:
        raise RuntimeError(f"a block returned {type(output).__name__}, which holds no hidden state")
    return hidden


class _Watching(threading.local):
    """A thread's pass and turn."""

    def __init__(self) -> None:
        self.watching = self.generating = self.fresh = self.uncounted = False
        self.prompt: Prompt | None = None
        self.texts: Sequences | None = None
        self.turn: Turn | None = None
        self.valid: Tensor | None = None
        self.past = 0
        self.parts = (slice(0, 0), slice(0, 0))
        self.waiting: dict[int, Tensor] = {}
        self.unchecked: list[tuple[Turn, int, Tensor, Tensor | None]] = []
