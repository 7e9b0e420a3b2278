"""A pass of nobody's while the engine starts, which shows that what is steered is what the model reads on.

First the model as it is: whoever reads a block's two tensors next must make of them their sum, to the bit, or the
stream is not what emosteer takes it for. Where a stage of a pipeline ends, they must be handed to the next as they are,
and the next shows that its first block reads what it was handed. Then each steered layer by itself, with a program on
every other token: the reader must get what the definition of the row update says, and the tokens between must keep
their bits. What is read must be the projections of that stream.

The model runs here as it is written, uncompiled, and its attention is left out: it has no cache yet to read from.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from emosteer.ops import reference
from emosteer.programs import Program, Slot

from .asking import Asked
from .deployment import Placed
from .stream import UnknownStream, parts
from .tokens import TRIAL

if TYPE_CHECKING:
    from .worker import WorkerSteering

# Tokens of the probe, and how hard they are pushed, in fractions of their own norms.
TOKENS, STRENGTH = TRIAL, 0.5
# The key of what the stage of a pipeline before this one hands on, among layers.
BEFORE = -1
# How far the steered stream may be from the definition, in units in the last place of the largest element.
ROUNDING = 8


@dataclass
class Handed:
    """What a block handed on, and what its reader made of it: copies.

    Attributes:
        hidden, residual: as they left the block, steered or not.
        stream: the residual that the reader returned, or what it read where the stream is one tensor.
        reader: the name of its class.
    """

    hidden: Tensor
    residual: Tensor | None
    stream: Tensor | None = None
    reader: str = ""

    @property
    def sum(self) -> Tensor:
        """The stream after the block."""
        return self.hidden if self.residual is None else self.hidden + self.residual


def prove(steering: WorkerSteering) -> None:
    """Show that steering acts on the stream that the model reads.

    Raises:
        UnknownStream: which block hands on something else, or is not steered as the definition says.
    """
    kind = type(steering.runner.model).__name__
    plain = _passed(steering, None)
    for layer, handed in plain.items():
        giver = "the stage before" if layer == BEFORE else f"block {layer}"
        if not bool(torch.isfinite(handed.sum).all()):
            raise UnknownStream(f"{kind}: the stream after {giver} is not finite in a trial pass")
        if handed.stream is None:
            raise UnknownStream(f"{kind}: nobody was seen to read what {giver} hands on")
        if not torch.equal(handed.stream, handed.sum):
            raise UnknownStream(
                f"{kind}: {handed.reader}, which reads what {giver} hands on, does not make hidden + residual of "
                f"it; its residual stream is another than emosteer knows"
            )
    if steering.reads is not None:
        for layer, values in steering.reads.values.items():
            if layer in steering.patched:
                _prove_reading(steering, kind, layer, plain[layer], values[:TOKENS])
    for layer in steering.deployment.layers:
        if layer in steering.patched:
            _prove_layer(steering, kind, layer, plain[layer], _passed(steering, layer)[layer])


def _prove_reading(steering: WorkerSteering, kind: str, layer: int, handed: Handed, values: Tensor) -> None:
    x = handed.sum.double().cpu()
    wanted = x @ steering.deployment.directions(layer).double().T
    off = float((values.double().cpu() - wanted).abs().max())
    allowed = ROUNDING * torch.finfo(torch.float32).eps * float(x.norm(dim=1).max())
    if not off <= allowed:
        raise UnknownStream(
            f"{kind}: what is read at block {layer} misses the projections of its stream by {off:.3g} (at most "
            f"{allowed:.3g} is rounding); emosteer does not know how this model hands its stream on"
        )


def _prove_layer(steering: WorkerSteering, kind: str, layer: int, before: Handed, after: Handed) -> None:
    deployment = steering.deployment
    table = deployment.table(_rows(steering, layer).clone())
    row = torch.full((TOKENS,), -1, dtype=torch.int32)
    row[::2] = 0
    directions = deployment.directions(layer)
    wanted = reference.steer(before.sum.double().cpu(), directions.double(), table, row, 1.0)
    assert after.stream is not None
    found = after.stream.double().cpu()
    largest = max(float(part.abs().max()) for part in (wanted, before.hidden, before.sum))
    allowed = ROUNDING * torch.finfo(before.hidden.dtype).eps * largest
    off = float((found - wanted).abs().max())
    moved = float((found - before.sum.double().cpu())[::2].abs().max())
    if not off <= allowed or not moved > allowed:
        raise UnknownStream(
            f"{kind}: a program at block {layer} moves the stream by {moved:.3g} and misses what it should be by "
            f"{off:.3g} (at most {allowed:.3g} is rounding); emosteer does not know how this model hands its stream on"
        )
    if not torch.equal(after.stream[1::2], before.sum[1::2]):
        raise UnknownStream(f"{kind}: tokens without a program are changed at block {layer}")


def _rows(steering: WorkerSteering, layer: int) -> Tensor:
    """int32 `[1, W]`: the probe's program at one layer, on the CPU."""
    return torch.frombuffer(bytearray(_pushed(steering, layer).row), dtype=torch.int32)[None]


def _pushed(steering: WorkerSteering, layer: int) -> Placed:
    bank_name, bank = next((n, b) for n, b in steering.deployment.banks.items() if layer in b.layers)
    program = Program((Slot(bank.names[0], STRENGTH),), preserve_norm=False)
    placed = steering.deployment.placed(Asked(program, bank_name, layer, relative=True))
    assert placed is not None
    return placed


def _passed(steering: WorkerSteering, layer: int | None) -> dict[int, Handed]:
    """A pass with the probe's program at one layer or none: what each block handed on that is to be steered."""
    tokens = steering.tokens
    device = tokens.value.device
    if layer is None:
        tokens.clear()
        if steering.reads is not None:
            steering.reads.every(TOKENS)
    else:
        placed = _pushed(steering, layer)
        starts = torch.arange(TOKENS + 1, dtype=torch.int32, device=device)
        places = torch.zeros(TOKENS, dtype=torch.int64, device=device)
        every_other = [placed if k % 2 == 0 else None for k in range(TOKENS)]
        tokens.fill(every_other, [0] * TOKENS, starts, places, TOKENS)
    try:
        with torch.inference_mode():
            before = _from_the_stage_before(steering.runner)
            with _watching(steering.runner.model, steering.patched, before) as seen:
                _run(steering.runner, before)
    finally:
        steering.idle()
    return seen


def _from_the_stage_before(runner: Any) -> Any:
    """What this stage of a pipeline would be handed: noise. None for the first, which may be the only one."""
    from vllm.distributed.parallel_state import get_pp_group

    if get_pp_group().is_first_rank:
        return None
    found = runner.model.make_empty_intermediate_tensors(
        batch_size=TOKENS, dtype=runner.vllm_config.model_config.dtype, device=runner.device
    )
    for number, name in enumerate(sorted(found.tensors)):
        noise = torch.Generator().manual_seed(number)
        found.tensors[name].copy_(torch.randn(found.tensors[name].shape, generator=noise))
    return found


@contextmanager
def _watching(model: nn.Module, blocks: dict[int, nn.Module], before: Any) -> Iterator[dict[int, Handed]]:
    """Inside, what the blocks and the stage before hand on and what is made of it is noted, by layer."""
    from vllm.sequence import IntermediateTensors

    seen: dict[int, Handed] = {}
    layer_of = {block: layer for layer, block in blocks.items()}
    waiting: list[tuple[Tensor, Tensor | None, Handed]] = []
    reading: list[tuple[nn.Module, Handed]] = []

    def note(layer: int, hidden: Tensor, residual: Tensor | None) -> None:
        handed = Handed(hidden.clone(), None if residual is None else residual.clone())
        seen[layer] = handed
        waiting.append((hidden, residual, handed))

    if before is not None:
        given = before.tensors
        if "hidden_states" not in given:
            raise UnknownStream(f"{type(model).__name__} hands {sorted(given)} from stage to stage")
        note(BEFORE, given["hidden_states"], given.get("residual"))

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        for hidden, residual, handed in list(waiting):
            if residual is None and any(one is hidden for one in given):
                handed.stream, handed.reader = hidden.clone(), type(module).__name__
                waiting.remove((hidden, residual, handed))
            elif len(given) > 1 and given[0] is hidden and given[1] is residual:
                handed.reader = type(module).__name__
                reading.append((module, handed))
                waiting.remove((hidden, residual, handed))

    def leave(module: nn.Module, _args: tuple, _kwargs: dict[str, Any], output: Any) -> None:
        from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

        if isinstance(module, AttentionLayerBase):
            for one in output if isinstance(output, tuple) else (output,):
                if isinstance(one, Tensor):
                    one.zero_()
        if reading and reading[-1][0] is module:
            _, handed = reading.pop()
            if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Tensor):
                handed.stream = output[1].clone()
        if module in layer_of:
            note(layer_of[module], *parts(output, layer_of[module]))
        if isinstance(output, IntermediateTensors):
            sent = {name: output.tensors.get(name) for name in ("hidden_states", "residual")}
            for hidden, residual, handed in list(waiting):
                if sent["hidden_states"] is hidden and sent["residual"] is residual:
                    handed.reader, handed.stream = "the next stage", handed.sum
                    waiting.remove((hidden, residual, handed))

    hooks = [
        hook
        for module in model.modules()
        for hook in (
            module.register_forward_pre_hook(enter, with_kwargs=True),
            module.register_forward_hook(leave, with_kwargs=True),
        )
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _run(runner: Any, before: Any) -> None:
    """The model on a few tokens, as it is written; `before` from `_from_the_stage_before`."""
    from vllm.forward_context import set_forward_context

    device, config = runner.device, runner.vllm_config
    places = torch.arange(TOKENS, dtype=torch.int64, device=device)
    if config.model_config.uses_mrope:
        places = places.expand(3, TOKENS).contiguous()
    inputs: dict[str, Any] = {
        "input_ids": torch.arange(1, TOKENS + 1, dtype=torch.int32, device=device),
        "positions": places,
        "intermediate_tensors": None,
        "inputs_embeds": None,
    }
    if before is not None:
        inputs |= {"input_ids": None, "intermediate_tensors": before}
    without: AbstractContextManager[None] = nullcontext()
    if config.lora_config is not None:  # under none of the adapters
        without = runner.maybe_select_dummy_loras(config.lora_config, np.array([TOKENS], dtype=np.int32))
    try:
        with without, set_forward_context(None, config, num_tokens=TOKENS, skip_compiled=True):
            runner.model(**inputs)
    except UnknownStream:
        raise
    except Exception as error:
        raise UnknownStream(
            f"{type(runner.model).__name__} could not be run on a few tokens to see how it hands its stream on: "
            f"{type(error).__name__}: {error}"
        ) from error
