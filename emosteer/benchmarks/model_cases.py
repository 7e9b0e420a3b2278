"""A decode step of a Llama, steered and not, launched eagerly and as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import torch

import emosteer as es

from .cases import Case


def step_cases(device: torch.device, stack: ExitStack, *, small: bool) -> Iterator[Case]:
    """Each batch row its own concept, every block steered; patches are undone when `stack` closes.

    The step has no cache: its cost is the weights, as that of a step with a short one.
    """
    depth, dim = (2, 64) if small else (32, 4096)
    model = _llama(device, depth, dim)
    directions = {
        layer: torch.randn(4, dim, generator=torch.Generator().manual_seed(layer)) for layer in range(depth)
    }
    bank = es.Bank(("a", "b", "c", "d"), directions, scale=dict.fromkeys(directions, 1.0))
    for batch in (2,) if small else (1, 32, 256):
        tokens = torch.arange(batch, device=device)[:, None] % 64
        forward = lambda tokens=tokens: model(tokens, use_cache=False).logits  # noqa: E731
        moved = 2.0 * sum(p.numel() for p in model.parameters())
        for mode in ("eager",) if small else ("eager", "CUDA graph"):
            sides: dict[str, Callable[[], object]] = {"unsteered": _as(mode, forward)}
            for fused in (True, False):
                # A graph holds what was patched when it was captured, so each side is patched and captured in turn.
                name = "steered, fused with the norm" if fused else "steered, own kernels"
                programs = [es.add(bank.names[i % 4], 0.1) for i in range(batch)]
                sides[name] = _Steered(model, bank, programs, fused, mode, forward, stack)
            yield Case(f"decode step B={batch} {mode}", sides, moved)


class _Steered:
    """Steers at its first call and keeps the captured graph; in eager mode steers around each round of calls."""

    def __init__(self, model, bank, programs, fused: bool, mode: str, forward, stack: ExitStack) -> None:
        self.make = lambda: es.steer(model, bank, programs, layers="all", fused=fused)
        self.mode, self.forward, self.stack = mode, forward, stack
        self.replay: Callable[[], object] | None = None

    def __enter__(self) -> Callable[[], object]:
        self.steering = self.make()
        self.steering.__enter__()
        self.replay = _as(self.mode, self.forward)
        return self.replay

    def __exit__(self, *error: object) -> None:
        self.steering.__exit__(*error)

    def __call__(self) -> object:
        with self as run:
            return run()


def _as(mode: str, forward: Callable[[], object]) -> Callable[[], object]:
    if mode == "eager":
        return forward
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


def _llama(device: torch.device, depth: int, dim: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(  # at depth 32 and width 4096 the 8B of Llama 3
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
