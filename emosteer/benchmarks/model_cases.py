"""A decode step of a Llama, steered and not, in each way that a model is run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import emosteer as es

from .cases import Case, Plan

# Blocks, width, bytes: at depth 32 and width 4096 the 8B of Llama 3.
DEPTH, WIDTH, PARAMETERS = 32, 4096, 8.03e9
MODES = ("eager", "compiled", "reduce-overhead", "CUDA graph")
BATCHES = (1, 16, 64)


def step_plans(device: torch.device, *, small: bool) -> Iterator[Plan]:
    """Each batch row its own concept, every block steered, against the same mode unsteered; one model for all."""
    made: list[tuple[torch.nn.Module, es.Bank]] = []

    def model() -> tuple[torch.nn.Module, es.Bank]:
        if not made:
            depth, dim = (2, 64) if small else (DEPTH, WIDTH)
            made.append((_llama(device, depth, dim), _bank(depth, dim)))
        return made[0]

    taken = 0.0 if small else 2.5 * PARAMETERS
    for batch in (2,) if small else BATCHES:
        for mode in MODES:
            name = f"decode step B={batch} {mode}"
            yield Plan(name, taken, partial(_step, name, batch, mode, model, device, small))
            if not small:
                taken = 0.5 * PARAMETERS  # the weights are there by now


def _step(name: str, batch: int, mode: str, of: Callable, device: torch.device, small: bool) -> Case:
    model, bank = of()
    tokens = torch.arange(batch, device=device)[:, None] % 64
    programs = [es.add(bank.names[i % 4], 0.1) for i in range(batch)]
    steered = partial(es.steer, model, bank, programs, layers="all")
    ways = {
        "unsteered": None,
        "steered": steered,
        "steered, own kernels": partial(steered, fused=False),
        "plain hooks": partial(_hooks, model, bank, device),
    }
    sides: dict[str, Any] = {
        way: _Side(partial(_as, mode, model, tokens, small), enter) for way, enter in ways.items()
    }
    moved = 2.0 * sum(p.numel() for p in model.parameters())
    return Case(name, sides, moved)


class _Side:
    """Patches, compiles or captures on entering, and leaves the model as it was."""

    def __init__(self, run: Callable[[], Callable[[], Any]], enter: Callable[[], Any] | None) -> None:
        self._run, self._enter = run, enter

    def __enter__(self) -> Callable[[], Any]:
        self._inside = None if self._enter is None else self._enter()
        if self._inside is not None:
            self._inside.__enter__()
        try:
            return self._run()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def __exit__(self, *error: object) -> None:
        if self._inside is not None:
            self._inside.__exit__(*error)


@contextmanager
def _hooks(model: Any, bank: es.Bank, device: torch.device) -> Iterator[None]:
    """One vector added by a forward hook on each block, as one writes it: no rows, no norm kept."""

    def hook(vector: torch.Tensor, _module: Any, _given: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + vector, *output[1:])
        return output + vector

    blocks = model.model.layers
    vectors = [0.1 * bank.directions[layer][0].to(device, torch.bfloat16) for layer in range(len(blocks))]
    handles = [block.register_forward_hook(partial(hook, vector)) for block, vector in zip(blocks, vectors)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as(mode: str, model: Any, tokens: torch.Tensor, small: bool) -> Callable[[], Any]:
    """A step without a cache: its cost is the weights, as that of a step with a short one."""

    def forward() -> Any:
        return model(tokens, use_cache=False).logits

    if mode == "eager" or (small and mode == "CUDA graph"):
        return forward
    if mode == "CUDA graph":
        return _captured(forward)
    torch._dynamo.reset()
    if small:
        return torch.compile(forward, dynamic=False, backend="eager")
    return torch.compile(forward, dynamic=False, mode="default" if mode == "compiled" else mode)


def _captured(forward: Callable[[], Any]) -> Callable[[], Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    return graph.replay


def _bank(depth: int, dim: int) -> es.Bank:
    directions = {
        layer: torch.randn(4, dim, generator=torch.Generator().manual_seed(layer)) for layer in range(depth)
    }
    return es.Bank(("a", "b", "c", "d"), directions, scale=dict.fromkeys(directions, 1.0))


def _llama(device: torch.device, depth: int, dim: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=31 * dim,
        hidden_size=dim,
        intermediate_size=7 * dim // 2,
        num_hidden_layers=depth,
        num_attention_heads=dim // 128 or 1,
        num_key_value_heads=dim // 512 or 1,
    )
    with torch.device(device), torch.random.fork_rng():
        torch.manual_seed(0)
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            return LlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(default)
