"""Steering inside a model's forward pass: what is patched, and what each patch does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from emosteer import ops
from emosteer.ops import SteerTable, backends, checks

from .blocks import Decoder, run_probe
from .fusion import Fusion, agree, find_fusion
from .norms import RmsNorm
from .padding import remember_mask
from .patching import Patches, first_tensor, with_first_tensor
from .positions import Positions, Prompt, TokenRows, prompt_of, virtual_tokens

# How a forward pass is steered.
OFF, IN_PLACE, DIFFERENTIABLE = 0, 1, 2


class _Pass:
    """What the patches of one forward pass share."""

    def __init__(self) -> None:
        self.mode = OFF
        self.token_row: Tensor | None = None
        self.mask: Tensor | None = None
        self.prompt: Prompt | None = None
        self.assigned: Tensor | None = None
        self.started: Tensor | None = None


class _LocalPass(threading.local, _Pass):
    """A pass of its own for each thread."""


class Injection:
    """Steers a model's residual stream by instance patches, all of which `detach` removes.

    These modules get a `forward` of their own: those around the stack of blocks (they note the attention
    mask), the stack (computes `token_row` once a pass), each steered block, and, where `Fusion` proved
    them, the RMS norms. Without gradients and outside compilation, a block is steered in place inside
    the norm that reads its output next, or at its output where that was not proved. With gradients, or
    while torch.compile traces, it is steered out of place at its output by the differentiable operator.
    The decision is taken once a pass.

    Args:
        entry: the object whose `generate` the user calls.
        model: the module that is run.
        decoder: its blocks.
        directions: block → float32 `[K, D]` unit directions; its keys are the steered blocks.
        scales: block → one unit of length.
        table: what each row does.
        positions: which tokens are acted on.
        fused: whether to look for a fusion.
    """

    def __init__(
        self,
        entry: Any,
        model: nn.Module,
        decoder: Decoder,
        directions: dict[int, Tensor],
        scales: dict[int, float],
        table: SteerTable,
        positions: Positions,
        *,
        fused: bool = True,
    ) -> None:
        self.entry, self.model, self.decoder = entry, model, decoder
        self.directions = {
            layer: v.detach().to(table.device, torch.float32).contiguous() for layer, v in directions.items()
        }
        self.scales, self.table, self.positions = scales, table, positions
        self._want_fused = fused
        self.fusion = Fusion()
        self._patches: Patches | None = None
        self._local, self._traced = _LocalPass(), _Pass()
        self._yielded = 0  # how many injections attached later are still attached
        self._earlier: list[Injection] = []

    @property
    def attached(self) -> bool:
        return self._patches is not None

    # ---- attaching and detaching ------------------------------------------------------------------

    def attach(self) -> None:
        """Patch the model; on any error it is left as it was."""
        if self._patches is not None:
            raise RuntimeError(
                "this steering is attached already; detach it first, or make another one to nest"
            )
        self._check()
        earlier = [i for i in _attached.get(self.decoder.stack, ()) if i is not self]
        fusable = self._want_fused and not earlier
        self.fusion = find_fusion(self.model, self.decoder, self._prove) if fusable else Fusion()
        self._earlier = earlier
        for other in earlier:
            other._yielded += 1
        _attached.setdefault(self.decoder.stack, []).append(self)
        try:
            self._patches = self._patch(self.fusion)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Restore every patched module."""
        patches, self._patches = self._patches, None
        if patches is not None:
            patches.undo()
        here = _attached.get(self.decoder.stack, [])
        if self in here:
            here.remove(self)
            for other in self._earlier:
                other._yielded -= 1
        if not here:
            _attached.pop(self.decoder.stack, None)
        self._earlier = []

    def _check(self) -> None:
        """What would fail in the middle of a forward pass, told before anything is patched."""
        for layer, v in self.directions.items():
            x = torch.empty(1, v.shape[1], device=v.device)
            checks.directions(v, x)
            checks.table(self.table, self.table.rows, None, x)
            checks.scale(self.scales[layer])
        dtype = next(
            (p.dtype for p in self.decoder.stack.parameters() if p.is_floating_point()), torch.float32
        )
        if dtype == torch.float64:
            raise TypeError("the model computes in float64, which the kernels do not; use model.float()")

    def _patch(self, fusion: Fusion) -> Patches:
        patches = Patches()
        try:
            remember_mask(patches, self.model, self.decoder, self._now)
            patches.replace(self.decoder.stack, "forward", partial(self._stack_forward, patches=patches))
            for layer in self.directions:
                fused = layer in fusion.readers
                patches.replace(
                    self.decoder.blocks[layer],
                    "forward",
                    partial(self._block_forward, patches=patches, layer=layer, fused=fused),
                )
                if fused:
                    norm = fusion.readers[layer]
                    patches.replace(
                        norm.module,
                        "forward",
                        partial(self._reader_forward, patches=patches, layer=layer, norm=norm),
                    )
            idle = [norm for layer, norm in fusion.readers.items() if layer not in self.directions]
            for norm in (*fusion.others, *idle):
                patches.replace(
                    norm.module, "forward", partial(self._norm_forward, patches=patches, norm=norm)
                )
            if hasattr(self.entry, "generate"):
                patches.replace(self.entry, "generate", partial(self._generate, patches=patches))
        except BaseException:
            patches.undo()
            raise
        return patches

    def _prove(self, fusion: Fusion) -> None:
        """Withdraw from a candidate fusion what does not give what steering at block outputs gives."""

        def outcome(candidate: Fusion | None) -> Tensor:
            if candidate is None:
                return _final(run_probe(self.model))
            patches = trial._patch(candidate)
            try:
                return _final(run_probe(self.model))
            finally:
                patches.undo()

        trial = self._trial(range(self.decoder.depth))
        unsteered, plain = outcome(None), outcome(Fusion())
        if agree(outcome(fusion), plain, unsteered):
            return
        fusion.others = []
        for layer in list(fusion.readers):
            trial = self._trial([layer])
            one = Fusion({layer: fusion.readers[layer]})
            if not agree(outcome(one), outcome(Fusion()), unsteered):
                fusion.without(layer, "steering inside the norm that reads it gave another result on a probe")
        fusion.others = []

    def _trial(self, layers: Any) -> Injection:
        """An injection that pushes hard in a random direction at every layer, to compare two ways by."""
        dim, device = self.decoder.dim, self.table.device
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(1, dim, generator=generator)
        v /= torch.linalg.vector_norm(v)
        table = SteerTable.empty(1, device=device)
        table.direction[0, 0] = 0
        table.strength[0, 0] = 0.5
        table.preserve_norm[0] = 1
        table.relative[0] = 1
        layers = list(layers)
        return Injection(
            None,
            self.model,
            self.decoder,
            dict.fromkeys(layers, v.to(device)),
            dict.fromkeys(layers, 1.0),
            table,
            Positions("all", 1),
        )

    def report(self) -> str:
        """One line a steered block."""
        lines = []
        for layer in sorted(self.directions):
            if layer in self.fusion.readers:
                norm = type(self.fusion.readers[layer].module).__name__
                lines.append(f"block {layer}: steered inside the {norm} that reads it (proved on a probe)")
                continue
            if not self._want_fused:
                why = "fused=False was asked for"
            elif not self.attached:
                why = "not attached"
            elif self._earlier:
                why = "another steering is attached to this model"
            else:
                why = self.fusion.reasons.get(layer, "no reading norm was found")
            lines.append(f"block {layer}: steered at its output ({why})")
        others = len(self.fusion.others)
        lines.append(
            f"{others} other RMS norms computed by the kernel" if others else "other norms as they are"
        )
        return "\n".join(lines)

    @contextmanager
    def batch(self, rows: Tensor | None, prompt: Prompt | None) -> Iterator[None]:
        """What this thread's passes are about; see `Steering.batch`."""
        now = self._local
        before = now.assigned, now.prompt, now.started
        now.assigned, now.prompt, now.started = rows, prompt, None
        try:
            yield
        finally:
            now.assigned, now.prompt, now.started = before

    # ---- the patches ------------------------------------------------------------------------------

    def _now(self) -> _Pass:
        return self._traced if torch.compiler.is_compiling() else self._local

    def _generate(self, original: Callable, patches: Patches) -> Callable:
        config = getattr(self.model, "generation_config", None)

        def generate(*args: Any, **kwargs: Any) -> Any:
            now = self._local
            if not patches.active or now.prompt is not None:
                return original(*args, **kwargs)
            asked = kwargs.get("generation_config") or config
            now.prompt = prompt_of(
                args,
                kwargs,
                kwargs.get("pad_token_id", getattr(asked, "pad_token_id", None)),
                kwargs.get("eos_token_id", getattr(asked, "eos_token_id", None)),
            )
            if now.prompt is not None:
                now.prompt = now.prompt.after(virtual_tokens(self.model))
            try:
                return original(*args, **kwargs)
            finally:
                now.prompt = now.started = None

        return generate

    def _stack_forward(self, original: Callable, patches: Patches) -> Callable:
        token_rows = TokenRows(original, self.positions)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not patches.active:
                return original(*args, **kwargs)
            now = self._now()
            now.token_row, now.started = token_rows(
                args, kwargs, self._local_prompt(), now.started, now.mask, now.assigned
            )
            differentiable = torch.is_grad_enabled() or torch.compiler.is_compiling()
            now.mode = DIFFERENTIABLE if differentiable else IN_PLACE
            try:
                return original(*args, **kwargs)
            finally:
                now.mode, now.token_row = OFF, None

        return forward

    def _local_prompt(self) -> Prompt | None:
        return None if torch.compiler.is_compiling() else self._local.prompt

    def _block_forward(self, original: Callable, patches: Patches, layer: int, fused: bool) -> Callable:
        directions, scale = self.directions[layer], self.scales[layer]

        def forward(*args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            now = self._now()
            if now.mode == OFF or not patches.active:
                return output
            if now.mode == IN_PLACE and fused and not self._yielded:
                return output
            hidden = first_tensor(output)
            if hidden is None:
                raise RuntimeError(
                    f"block {layer} returned {type(output).__name__}, which holds no hidden state"
                )
            v = directions if directions.device == hidden.device else directions.to(hidden.device)
            table = self.table if self.table.device == hidden.device else self.table.to(hidden.device)
            row = now.token_row
            if row is not None and row.device != hidden.device:
                row = row.to(hidden.device)
            if now.mode == IN_PLACE and _plain_rows(hidden):
                ops.steer_(hidden, v, table, row, scale=scale)
                return output
            steered = ops.steer(hidden.contiguous(), v, table, row, scale=scale)
            return with_first_tensor(output, steered)

        return forward

    def _reader_forward(self, original: Callable, patches: Patches, layer: int, norm: RmsNorm) -> Callable:
        directions, scale, table = self.directions[layer], self.scales[layer], self.table
        local, parameters, eps, offset = (self._local, norm.module._parameters, norm.eps, norm.weight_offset)

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or local.mode != IN_PLACE or self._yielded or not patches.active:
                return original(x, *args, **kwargs)
            weight = parameters["weight"]
            assert weight is not None  # a norm without one is not recognised
            if args or kwargs or x.dtype != weight.dtype or not x.is_contiguous() or type(x) is not Tensor:
                ops.steer_(x, directions, table, local.token_row, scale=scale)
                return original(x, *args, **kwargs)
            run = backends.of(x.device)
            token_row = local.token_row
            if token_row is None and (x.numel() // x.shape[-1]) % table.rows:
                checks.table(table, x.numel() // x.shape[-1], None, x)
            return run.steer_rms_norm_(x, weight, directions, table, token_row, scale, None, eps, offset)

        return forward

    def _norm_forward(self, original: Callable, patches: Patches, norm: RmsNorm) -> Callable:
        local, parameters, eps, offset = (self._local, norm.module._parameters, norm.eps, norm.weight_offset)

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or local.mode != IN_PLACE or self._yielded or not patches.active:
                return original(x, *args, **kwargs)
            weight = parameters["weight"]
            assert weight is not None  # a norm without one is not recognised
            if args or kwargs or x.dtype != weight.dtype or x.stride(-1) != 1 or type(x) is not Tensor:
                return original(x, *args, **kwargs)
            return backends.of(x.device).rms_norm(x, weight, eps, offset)

        return forward


# Injections attached to a stack, in the order of attaching.
_attached: dict[nn.Module, list[Injection]] = {}


@contextmanager
def steered_at_outputs(decoder: Decoder) -> Iterator[None]:
    """Inside, every steering of these blocks happens at their outputs, where it can be looked at."""
    attached = list(_attached.get(decoder.stack, ()))
    for injection in attached:
        injection._yielded += 1
    try:
        yield
    finally:
        for injection in attached:
            injection._yielded -= 1


def _plain_rows(x: Tensor) -> bool:
    return type(x) is Tensor and not x.requires_grad and x.stride(-1) == 1


def _final(output: Any) -> Tensor:
    """The last hidden state or logits of a model's output."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if hasattr(output, "values") else output
    return next(v for v in values if isinstance(v, Tensor) and v.ndim == 3)
