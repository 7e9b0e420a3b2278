"""Steering inside a model's forward pass: what is patched, when, and how it is undone."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from emosteer.ops import SteerTable, checks, formula

from .addresses import fixed
from .blocks import Decoder
from .forwards import MASK, BlockForward, MaskForward, NormForward, StackForward, watchers
from .fusion import Fusion, find_fusion
from .generating import PACKED, GenerateCall, PackedCall
from .levels import Level, free_level
from .pass_patches import PassPatches
from .patching import Patches, Replacement
from .positions import Positions
from .prompts import Prompt
from .proof import prove
from .table_rows import TableRows

# Injections attached to a stack, in the order of attaching.
_attached: dict[nn.Module, list[Injection]] = {}
# Directions of a bank → their dot products, which every steering with that bank reads.
_grams: WeakIdKeyDictionary = WeakIdKeyDictionary()


class Injection:
    """Steers a model's residual stream by instance patches, all of which `detach` removes.

    These modules get a `forward` of their own (`forwards`): those around the stack of blocks (they note
    the attention mask), the stack (says once a pass which row each token takes), each steered block,
    and, where `prove` allows it, the RMS norms. What they share lies in a `Level`, in tensors that
    eager, traced and regionally compiled code read alike.

    Args:
        entry: the object whose `generate` the user calls.
        model: the module that is run.
        decoder: its blocks.
        directions: block → float32 `[K, D]` unit directions; its keys are the steered blocks.
        scales: block → one unit of length.
        table: what each row does.
        positions: which tokens are acted on.
        rows: what keeps the table: with idle rows after it, so that tables of many sizes share compiled code,
            and its replicas on the devices of a model that lies on several.
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
        rows: TableRows | None = None,
        fused: bool = True,
    ) -> None:
        self.entry, self.model, self.decoder = entry, model, decoder
        with torch.inference_mode(False):
            self.directions = {layer: _ready(v) for layer, v in directions.items()}
        self._banked = directions
        self.scales, self.table, self.positions = scales, table, positions
        self.rows, self.whole = rows, table if rows is None else rows.whole
        for column in self.whole.columns():
            fixed(column)
        self._want_fused = fused
        self.fusion = Fusion()
        self._patches: Patches | None = None
        self._level: Level | None = None
        self._earlier: list[Injection] = []
        self._thread = 0

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
        _require_one_thread(earlier)
        if not earlier:
            self.fusion = find_fusion(self.model, self.decoder, self._prove)
        if earlier or not self._want_fused:
            self.fusion = Fusion()
        self._earlier, self._thread = earlier, threading.get_ident()
        for other in earlier:
            assert other._level is not None  # attached
            other._level.yielded += 1
        _attached.setdefault(self.decoder.stack, []).append(self)
        try:
            self._level = free_level(self.decoder.stack)
            self._level.gram = self._gram()
            self._patches = self._patch(self._level, self.fusion)
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Restore every patched module.

        Raises:
            RuntimeError: the model is restored, and another thread is still generating with it.
        """
        patches, self._patches = self._patches, None
        level, self._level = self._level, None
        if level is not None:
            level.active = False
        if patches is not None:
            patches.undo()
        here = _attached.get(self.decoder.stack, [])
        if self in here:
            here.remove(self)
            for other in self._earlier:
                if other._level is not None:
                    other._level.yielded -= 1
        if not here:
            _attached.pop(self.decoder.stack, None)
        self._earlier = []
        if level is not None and level.asking - {threading.get_ident()} and sys.exc_info()[0] is None:
            raise RuntimeError(
                "the steering was left while another thread still generates with the model, unsteered from here "
                "on; join the thread inside the `with` block"
            )

    def _check(self) -> None:
        """What would fail in the middle of a forward pass, told before anything is patched."""
        for layer, v in self.directions.items():
            checks.directions(v, torch.empty(1, v.shape[1], device=v.device))
            checks.table(self.table, self.table.rows, None, self.table.strength)
            checks.scale(self.scales[layer])

    def _gram(self) -> Tensor | None:
        """`[L, K, K]`, for the formula's tables of several slots; kept beside the bank's own tensors."""
        if not 1 < self.table.slots <= formula.MAX_SLOTS:
            return None
        parts = []
        for layer, raw in self._banked.items():
            if raw not in _grams or _grams[raw].device != self.table.device:
                v = self.directions[layer]
                with torch.inference_mode(False):
                    _grams[raw] = (v @ v.T).to(self.table.device)
            parts.append(_grams[raw])
        with torch.inference_mode(False):
            return fixed(torch.stack(parts))

    def _patch(self, level: Level, fusion: Fusion) -> Patches:
        patches = Patches()
        blocks, stack = self.decoder.blocks, self.decoder.stack
        level.table, level.whole, level.rows = self.table, self.whole, self.rows
        level.choose(self.positions, self.whole.rows, self.table.device)
        level.yielded = 0
        try:
            for module in _around(self.model, self.decoder):
                if MASK in inspect.signature(module.forward).parameters:
                    self._replace(patches, module, level.forward(("mask", id(module)), MaskForward))
            reading = {}
            for at, (layer, v) in enumerate(self.directions.items()):
                block = level.forward(("block", layer), BlockForward)
                between = fusion.between.get(layer, ()) if layer in fusion.readers else None
                hooks = None if between is None else watchers(blocks[layer], *between)
                block.steers(layer, at, v, self.scales[layer], hooks)
                self._replace(patches, blocks[layer], block)
                if between is not None:
                    reading[layer] = block
            norms = PassPatches(_norm_forwards(level, fusion, reading))
            patches.also(norms.undo)
            forward = level.forward("stack", StackForward)
            forward.steers(self.positions, [blocks[layer] for layer in self.directions], norms, fusion.given)
            self._replace(patches, stack, forward)
            self._patch_calls(patches, level)
            level.active = True
        except BaseException:
            patches.undo()
            raise
        return patches

    def _patch_calls(self, patches: Patches, level: Level) -> None:
        for owner in dict.fromkeys((self.entry, self.model)):
            if owner is None or getattr(owner, "_orig_mod", None) is self.model:
                continue  # a compiled model asks the one inside for everything but its forward
            if hasattr(owner, "generate"):
                call = level.forward(("generate", id(owner)), GenerateCall)
                call.steers(self.model if owner is self.model else owner, self.positions, self.table.device)
                patches.replace(owner, "generate", _standing(call))
            for name in PACKED:
                if hasattr(owner, name):
                    packed = level.forward((name, id(owner)), PackedCall)
                    packed.positions = self.positions
                    patches.replace(owner, name, _standing(packed))

    @staticmethod
    def _replace(patches: Patches, module: nn.Module, forward: Any) -> None:
        patches.replace(module, "forward", _standing(forward))

    def _prove(self, fusion: Fusion) -> None:
        prove(self.model, self.decoder, fusion, self.table.device, self._steered)

    @contextmanager
    def _steered(
        self, layers: Iterable[int], fusion: Fusion, directions: dict[int, Tensor], table: SteerTable
    ) -> Iterator[None]:
        """The model patched to push at some layers, to compare two ways of doing so."""
        units = dict.fromkeys(layers, 1.0)
        trial = Injection(None, self.model, self.decoder, directions, units, table, Positions("all", 1))
        level = free_level(self.decoder.stack)
        level.proving = True
        patches = trial._patch(level, fusion)
        try:
            yield
        finally:
            level.active = level.proving = False
            patches.undo()

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
        if self.table.slots > formula.MAX_SLOTS:
            lines.append(
                f"compiled: by an operator of its own, since {self.table.slots} slots a row are more than the "
                f"{formula.MAX_SLOTS} that the compiler is given as a formula"
            )
        return "\n".join(lines)

    @contextmanager
    def reading(self, table: SteerTable) -> Iterator[None]:
        """Traced passes inside read this table."""
        level = self._level
        assert level is not None  # attached
        before, level.whole = level.whole, table
        try:
            yield
        finally:
            level.whole = before

    @contextmanager
    def batch(self, rows: Tensor | None, prompt: Prompt | None) -> Iterator[None]:
        """What this thread's passes are about; see `Steering.batch`."""
        level = self._level
        if level is None:
            raise RuntimeError("batch() speaks of the passes of a steered model; enter the steering first")
        with level.now.texts(self.table.device).saying(prompt, rows):
            yield


@contextmanager
def steered_at_outputs(decoder: Decoder) -> Iterator[None]:
    """Inside, every steering of these blocks happens at their outputs, where it can be looked at."""
    levels = [i._level for i in _attached.get(decoder.stack, ()) if i._level is not None]
    for level in levels:
        level.yielded += 1
    try:
        yield
    finally:
        for level in levels:
            level.yielded -= 1


def _norm_forwards(
    level: Level, fusion: Fusion, reading: dict[int, BlockForward]
) -> Iterator[tuple[nn.Module, NormForward]]:
    norms = [(norm, reading.get(layer)) for layer, norm in fusion.readers.items()]
    for norm, block in [*norms, *((norm, None) for norm in fusion.others)]:
        forward = level.forward(("norm", id(norm.module)), NormForward)
        forward.stands_for(norm, block)
        yield norm.module, forward


def _standing(replacement: Replacement) -> Callable[[Callable], Callable]:
    """For `Patches.replace`: this replacement, whatever was there."""
    return lambda _before: replacement


def _require_one_thread(earlier: list[Injection]) -> None:
    mine = threading.get_ident()
    if any(other._thread != mine for other in earlier):
        raise RuntimeError(
            "another thread has attached a steering to this model, and a steering acts on every thread's passes: "
            "the two would steer each other. Attach one steering with a program a row, and let each thread say "
            "which rows its batch takes: `with steering.batch([row]): model.generate(…)`"
        )


def _around(model: nn.Module, decoder: Decoder) -> Iterator[nn.Module]:
    """The modules that contain the stack, from the model inwards, without the stack itself."""
    path: list[str] = []
    for part in decoder.name.split("."):
        module = model.get_submodule(".".join(path))
        if module is decoder.stack:
            return
        yield module
        path.append(part)


def _ready(v: Tensor) -> Tensor:
    """Float32, and no inference tensor: a gradient may want it."""
    v = v.detach()
    v = v.clone() if v.is_inference() else v
    return fixed(v.to(torch.float32).contiguous())
