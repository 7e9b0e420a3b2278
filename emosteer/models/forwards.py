"""The forwards that steer: what each patched module does in a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module

from emosteer import ops
from emosteer.ops import SteerTable, checks, formula
from emosteer.ops.formula import TokenPrograms

from . import caches
from .blocks import same_tensor
from .levels import DIFFERENTIABLE, FORMULA, IN_PLACE, OFF, Level, Pass
from .norms import RmsNorm
from .pass_patches import PassPatches
from .patching import Replacement, first_tensor, with_first_tensor
from .positions import Positions
from .sequences import Sequences, seen_through
from .token_rows import IDLE, NO_ROW, TokenRows, more_than_text, parameter_names, tokens_of, traced_rows

MASK = "attention_mask"
# Where a block finds the pass that it belongs to when it is run again for its gradient.
_PASS = "_emosteer_pass"


class MaskForward(Replacement):
    """A module around the stack: notes the 2-D attention mask that it is called with.

    A vision-language model hands its text part masks made ready for attention, a recurrent one may
    drop the mask; which tokens are padding is then known only further out.
    """

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level

    def installed(self, owner: Any, name: str, before: Any, original: Callable) -> None:
        super().installed(owner, name, before, original)
        self.at = parameter_names(original).index(MASK)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.level.active:
            return self.original(*args, **kwargs)
        now = self.level.now
        outer = now.mask
        mask = kwargs.get(MASK, args[self.at] if len(args) > self.at else None)
        if isinstance(mask, Tensor) and mask.ndim == 2:
            now.mask = mask
        try:
            return self.original(*args, **kwargs)
        finally:
            now.mask = outer


class StackForward(Replacement):
    """The stack of blocks: says once a pass which row of the table each token takes, and how it is steered."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level
        self.positions = Positions("all", 1)
        self.blocks: tuple[nn.Module, ...] = ()
        self.norms = PassPatches()
        self.given: frozenset[str] = frozenset()

    def steers(
        self, positions: Positions, blocks: Iterable[nn.Module], norms: PassPatches, given: frozenset[str]
    ) -> None:
        """Take over a steering.

        Args:
            positions: which tokens are acted on.
            blocks: the steered ones.
            norms: those that steer, or run on the kernel, in the passes that may.
            given: the arguments that the stack was given when that was proved.
        """
        self.positions, self.blocks = positions, tuple(dict.fromkeys(blocks))
        self.norms, self.given = norms, given

    def installed(self, owner: Any, name: str, before: Any, original: Callable) -> None:
        super().installed(owner, name, before, original)
        self.rows = TokenRows(original, self.positions)
        self.names = self.rows.names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        level = self.level
        if not level.active:
            return self.original(*args, **kwargs)
        now = level.now
        outer = (
            *(now.mode, now.token_row, now.row, now.keep),
            *(now.programs, now.inverse, now.fused, now.pending, now.left, now.table),
        )
        call = {**dict(zip(self.names, args)), **kwargs}
        traced = torch.compiler.is_compiling()
        if traced or seen_through():
            now.mode, now.token_row, now.fused = FORMULA, None, False
            self._trace(call, now, now.texts(tokens_of(call).device))
        else:
            self._run(call, now)
        now.pending = now.left = None
        norms = self.norms if now.fused else None
        try:
            if norms is not None:
                norms.enter()
            output = self.original(*args, **kwargs)
            if now.pending is not None:
                _not_taken(now.pending)
            if not traced:
                self.rows.filled.saw(call, output, tokens_of(call).shape[1])
            return output
        finally:
            if norms is not None:
                norms.exit()
            now.mode, now.token_row, now.row, now.keep, *rest = outer  # type: ignore[assignment]
            now.programs, now.inverse, now.fused, now.pending, now.left, now.table = rest  # type: ignore[assignment]

    def _trace(self, call: dict[str, Any], now: Pass, texts: Sequences) -> None:
        """What the formula needs, in tensors that compiled code may read."""
        level = self.level
        table, picks = level.whole, level.picks
        assert table is not None  # active
        assert picks is not None
        if now.guided:
            raise RuntimeError(
                'under torch.compile, positions that count from the prompt (positions="prompt", "generated", '
                "slices from its end) cannot be told for guidance_scale, which runs two texts; "
                "generate without compiling the model, or without guidance"
            )
        now.row, now.keep = traced_rows(call, texts, picks, now.mask, self.rows.filled)
        now.programs = now.inverse = None
        slots = table.direction.shape[1]
        if slots <= formula.MAX_SLOTS:
            now.programs = formula.look_up(table, now.row, now.keep)
        if 1 < slots <= formula.MAX_SLOTS:
            assert level.gram is not None  # of a table of several slots
            now.inverse = formula.inverse_gram(level.gram, formula.slots_of(table, now.row)).float()

    def _run(self, call: dict[str, Any], now: Pass) -> None:
        """What the kernels need, and for blocks that are compiled one by one what the formula needs."""
        texts = self._texts(call, now)
        apart = [m for m in self.blocks if m._compiled_call_impl is not None or not _ours(m)]
        # Compiled blocks have one graph, for passes in which no token is acted on too.
        token_row = self.rows(call, texts, now.mask, idle=not apart)
        if token_row is IDLE:
            now.mode = OFF
            return
        now.token_row = token_row  # type: ignore[assignment]  # a tensor or None
        now.elsewhere.clear()
        now.mode = DIFFERENTIABLE if torch.is_grad_enabled() else IN_PLACE
        now.table = _kept(self.level.table) if now.mode == DIFFERENTIABLE else None
        now.row = now.keep = now.programs = now.inverse = None
        now.fused = (
            now.mode == IN_PLACE
            and not apart
            and not self.level.yielded
            and self.norms.possible
            # What the proof was not given (images, say) may change the stream between blocks.
            and not more_than_text(call, self.given)
        )
        if apart:
            self._trace(call, now, texts)
            if now.mode == IN_PLACE:  # a gradient may still want the tensors of the pass before
                for name in ("row", "keep", "inverse"):
                    value = getattr(now, name)
                    setattr(now, name, None if value is None else now.hold(name, value))
                if now.programs is not None:
                    named = now.programs._asdict().items()
                    now.programs = TokenPrograms(*(now.hold(name, value) for name, value in named))

    def _texts(self, call: dict[str, Any], now: Pass) -> Sequences:
        """The texts of a pass: those of the `generate` call, unless somebody runs others in caches of their own."""
        device = tokens_of(call).device
        texts = now.texts(device)
        if not now.asking:
            return texts
        cache = caches.given(call)
        if now.cache is None:
            now.cache = cache
        if cache is now.cache or not hasattr(now.cache, "get_seq_length"):
            return texts
        if now.beside is None:
            now.beside = Sequences(device)
            now.beside.assigned = texts.assigned
        return now.beside


def _ours(module: nn.Module) -> bool:
    """Whether the module still has the forward that steers, and nobody wrapped it."""
    return isinstance(module.__dict__.get("forward"), Replacement)


def _not_taken(layer: int) -> None:
    raise RuntimeError(
        f"the steering of block {layer} was left to the norm that reads its output, and that norm did not run "
        f"next; pass fused=False to es.steer"
    )


class BlockForward(Replacement):
    """A block: steers its output, or leaves that to the norm that reads it.

    Without gradients a stream is steered in place, inside the norm where that was proved to be the
    same and nobody looks at the stream in between; with gradients out of place by the operator; in
    compiled code by the formula.
    """

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level
        self.layer = -1

    def steers(
        self, layer: int, at: int, directions: Tensor, scale: float, watchers: tuple[dict, ...] | None
    ) -> None:
        """Take over a steering.

        Args:
            layer: number of the block.
            at: its place among the steered blocks.
            directions: float32 `[K, D]`.
            scale: one unit of length.
            watchers: hooks that would see the stream before the norm has steered it; None where the block
                is steered at its output.
        """
        self.layer, self.directions, self.unit = layer, directions, scale
        self.watchers = watchers
        self.site: ops.SteerSite | None = None
        # One tensor for both, since compiled code checks each before it runs.
        with torch.inference_mode(False):
            self.numbers = torch.tensor([at, scale], dtype=torch.float64, device=directions.device)

    def gone(self) -> None:
        super().gone()
        self.site = None  # which holds a table

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self.original(*args, **kwargs)
        level = self.level
        if not level.active:
            return output
        now = level.now
        mode = now.mode
        if mode == FORMULA or (mode != OFF and torch.compiler.is_compiling()):
            return _by_formula(self, output, now)
        if mode == OFF:
            return self._again(output, kwargs) if torch.is_grad_enabled() else output
        if mode == IN_PLACE:
            if now.pending is not None:
                _not_taken(now.pending)
            if now.fused and self.watchers is not None and (level.proving or not any(self.watchers)):
                now.pending, now.left = self.layer, first_tensor(output)
                return output
        elif mode == DIFFERENTIABLE:
            _remember(kwargs, now.token_row, now.table)
        row = now.token_row
        if row is not None:
            row = now.token_row_on(_hidden(self, output).device)
        return self._by_kernel(output, row, mode, now.table)

    def _by_kernel(self, output: Any, row: Tensor | None, mode: int, kept: SteerTable | None = None) -> Any:
        """Steer by the table, or by the one that was `kept` for a gradient."""
        hidden = _hidden(self, output)
        v, table = self.directions, self.level.table if kept is None else kept
        assert table is not None  # active
        if v.device != hidden.device:
            v = self.directions = v.to(hidden.device)
        if table.device != hidden.device:
            table = self.level.table_on(hidden.device) if kept is None else kept.to(hidden.device)
        if row is not None and row.device != hidden.device:
            row = row.to(hidden.device)
        if hidden.dtype not in checks.DTYPES:
            return with_first_tensor(output, self._exactly(hidden, v, table, row))
        plain = type(hidden) is Tensor and not hidden.requires_grad and hidden.stride(-1) == 1
        if mode == IN_PLACE and plain:
            if hidden.is_contiguous():
                site = self.site
                if site is None or site.directions is not v or site.table is not table:
                    site = self.site = ops.SteerSite(v, table, scale=self.unit)
                site(hidden, row)
            else:
                ops.steer_(hidden, v, table, row, scale=self.unit)
            return output
        return with_first_tensor(output, ops.steer(hidden.contiguous(), v, table, row, scale=self.unit))

    def _exactly(self, hidden: Tensor, v: Tensor, table: SteerTable, row: Tensor | None) -> Tensor:
        """In a dtype that the kernels do not compute in."""
        if hidden.dtype != torch.float64:
            raise TypeError(
                f"block {self.layer} returned {hidden.dtype}; steering computes in float32, bfloat16, float16 "
                f"and float64"
            )
        rows = hidden.shape[:-1]
        if row is None:
            row = torch.arange(rows.numel(), device=hidden.device) // max(rows.numel() // table.rows, 1)
        if table.slots <= formula.MAX_SLOTS:
            return formula.steer(hidden, v, table, row.view(rows), scale=self.unit)
        with ops.backend("reference"):
            return ops.steer(hidden, v, table, row.view(-1), scale=self.unit)

    def _again(self, output: Any, kwargs: dict[str, Any]) -> Any:
        """Steer a block that activation checkpointing runs a second time, after its pass, as in its pass."""
        found = None
        if not torch.compiler.is_compiling():
            if torch._C._current_graph_task_id() == -1:  # no gradient is being computed
                return output
            found = next((getattr(t, _PASS) for t in _tensors(kwargs) if hasattr(t, _PASS)), None)
        if found is None:
            raise RuntimeError(
                "a steered block is recomputed for its gradient, and nothing tells which pass it belongs to; leave "
                "activation checkpointing off while steering, or compile the whole model instead of its blocks"
            )
        return self._by_kernel(output, found[0], DIFFERENTIABLE, found[1])


# Functions rather than methods: compiled code would check for each block that no instance hides a method.
def _by_formula(block: BlockForward, output: Any, now: Pass) -> Any:
    hidden = _hidden(block, output)
    row, keep, programs, inverse, table = now.row, now.keep, now.programs, now.inverse, block.level.whole
    if row is None or keep is None or table is None:
        raise RuntimeError(
            "a steered block is compiled by itself in a way that was not seen when the pass began; "
            "use block.compile(), or compile the whole model"
        )
    v, numbers = block.directions, block.numbers
    if hidden.device != v.device:
        v, numbers = v.to(hidden.device), numbers.to(hidden.device)
    if hidden.device != table.device:
        table = block.level.whole_on(hidden.device)
    if hidden.device != row.device:
        row, keep = row.to(hidden.device), keep.to(hidden.device)
        inverse = None if inverse is None else inverse.to(hidden.device)
        programs = None if programs is None else TokenPrograms(*(t.to(hidden.device) for t in programs))
    x = hidden if hidden.shape[:-1] == keep.shape else hidden.reshape(*keep.shape, hidden.shape[-1])
    if programs is None:
        token_row = torch.where(keep, row, NO_ROW).to(torch.int32).reshape(-1)
        columns = table.columns()
        y = torch.ops.emosteer.steer.default(x.contiguous(), v, *columns, token_row, block.unit)
    elif x.dtype == torch.float64:  # nothing of it rounded to float32 before
        y = formula.steer(x, v, table, row, keep=keep, scale=numbers[1])
    else:
        of = None if inverse is None else inverse.index_select(0, numbers[:1].long())[0]
        unit = numbers[1].float()
        y = formula.steer(x, v, table, row, scale=unit, programs=programs, inverse=of)
    return with_first_tensor(output, y if y.shape == hidden.shape else y.reshape(hidden.shape))


def _hidden(block: BlockForward, output: Any) -> Tensor:
    hidden = first_tensor(output)
    if hidden is None:
        raise RuntimeError(
            f"block {block.layer} returned {type(output).__name__}, which holds no hidden state"
        )
    return hidden


def _kept(table: SteerTable | None) -> SteerTable | None:
    """The table as it is now: programs may be set before the gradient is computed."""
    if table is None or table.record is None or any(column.requires_grad for column in table.columns()):
        return table
    return SteerTable.of_record(table.record.clone(), table.slots)


def _remember(kwargs: dict[str, Any], token_row: Tensor | None, table: SteerTable | None) -> None:
    """Note a pass on a tensor that a block is given again, the same one, when it is recomputed."""
    tensor = next(iter(_tensors(kwargs)), None)
    if tensor is not None:
        setattr(tensor, _PASS, (token_row, table))


def _tensors(kwargs: dict[str, Any]) -> list[Tensor]:
    return [
        tensor
        for value in kwargs.values()
        for tensor in (value if isinstance(value, tuple) else (value,))
        if isinstance(tensor, Tensor)
    ]


class NormForward(Replacement):
    """An RMS norm: steers the stream that it reads where a block has left that to it, and runs on the kernel."""

    def __init__(self, level: Level) -> None:
        super().__init__()
        self.level = level
        self.layer: int | None = None

    def stands_for(self, norm: RmsNorm, block: BlockForward | None) -> None:
        """Take over a norm, and the steering of the block whose output it reads."""
        self.parameters, self.eps, self.offset = norm.module._parameters, norm.eps, norm.weight_offset
        self.block = block
        self.layer = None if block is None else block.layer
        self.site: ops.Site | None = None
        self.norm_site: ops.NormSite | None = None

    def gone(self) -> None:
        super().gone()
        self.site = self.norm_site = None  # which hold a weight and a table

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        now = self.level.now
        if torch.compiler.is_compiling() or not self.level.active or not now.fused:
            return self.original(x, *args, **kwargs)
        weight = self.parameters["weight"]
        assert weight is not None  # a norm without one is not recognised
        other = (
            args or kwargs or x.dtype != weight.dtype or x.dtype not in checks.DTYPES or type(x) is not Tensor
        )
        if now.pending is None or now.pending != self.layer:
            if other or x.stride(-1) != 1:
                return self.original(x, *args, **kwargs)
            norm_site = self.norm_site
            if norm_site is None or norm_site.weight is not weight:
                norm_site = ops.NormSite(weight, eps=self.eps, weight_offset=self.offset)
                self.norm_site = norm_site
            return norm_site(x)
        left, now.pending, now.left = now.left, None, None
        # A proof finds out by what comes of it.
        if left is not x and not self.level.proving and (left is None or not same_tensor(left, x)):
            raise RuntimeError(
                f"what block {self.layer} returned was replaced before the norm that reads it; pass fused=False to "
                f"es.steer"
            )
        block, table, token_row = self.block, self.level.table, now.token_row_on(x.device)
        assert block is not None  # who leaves its steering here
        assert table is not None
        if table.device != x.device:
            table = self.level.table_on(x.device)
        if other or not x.is_contiguous() or x.device != weight.device or block.directions.device != x.device:
            steered = block._by_kernel(x, token_row, IN_PLACE)
            if steered is not x:
                x.copy_(steered)
            return self.original(x, *args, **kwargs)
        site = self.site
        if (
            site is None
            or site.weight is not weight
            or site.directions is not block.directions
            or site.table is not table
        ):
            numbers = {"scale": block.unit, "eps": self.eps, "weight_offset": self.offset}
            site = self.site = ops.Site(weight, block.directions, table, **numbers)
        return site(x, token_row)


def watchers(*modules: nn.Module) -> tuple[dict, ...]:
    """The hooks that would see, or change, a stream between a block's output and the norm that steers it.

    Args:
        modules: the block; then what its output passes into up to the norm.
    """
    block, *into = modules
    return (
        block._forward_hooks,
        every_module._global_forward_hooks,
        every_module._global_forward_pre_hooks,
        *(module._forward_pre_hooks for module in into),
    )
