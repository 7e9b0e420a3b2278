"""Inductor's code for a GPU, where there is none: the graph of a pass, as compiled here, lowered for CUDA.

Fusion is decided before a target's code is written, from what tensors and kernels are, and Triton's source
needs no device either; only compiling and running it do. So the graph that a CPU would get is told that it
lives on a GPU of compute capability 9.0, and Inductor's own lowering writes its wrapper and its kernels. What
stands in for a device here are its properties; what is not shown is that the code compiles, runs, or is fast.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

CUDA = torch.device("cuda:0")
# Of an H100, as Inductor asks for them.
PROPERTIES = SimpleNamespace(
    name="H100",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65536,
    max_threads_per_block=1024,
    max_threads_per_multi_processor=2048,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 << 20,
    total_memory=80 << 30,
    warp_size=32,
    gcnArchName="",
)
LAUNCH = re.compile(r"^\s+(?:\w+\.run\(|extern_kernels\.\w+\(|(?:buf\d+ = )?(?:torch\.ops|aten)\.)", re.M)


class _Written(Exception):
    """The code is there; what would follow is compiling it."""


def cuda_code(model: nn.Module, run: Callable[[Any], Tensor]) -> str:
    """The Python that Inductor writes for `run(model)`, one pass without gradients, on a GPU."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._inductor.decomposition import select_decomp_table

    written: list[str] = []

    def compiler(graph: torch.fx.GraphModule, example: list[Any]) -> torch.fx.GraphModule:
        written.append(_lowered(copy.deepcopy(graph), example))
        return graph

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler, decompositions=select_decomp_table())
    with torch.no_grad():
        run(torch.compile(model, backend=backend, dynamic=False, fullgraph=True))
    (code,) = written
    return code


def launches(code: str) -> int:
    """Kernels and library calls of one pass."""
    return len(LAUNCH.findall(code[code.index("def call(") :]))


def _lowered(graph: torch.fx.GraphModule, example: list[Any]) -> str:
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    fake = torch._guards.detect_fake_mode(example)
    for node in graph.graph.nodes:
        node.args, node.kwargs = torch.fx.node.map_aggregate(
            (node.args, node.kwargs), lambda a: CUDA if isinstance(a, torch.device) else a
        )
    graph.recompile()
    with fake:
        moved = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=CUDA)
            if isinstance(t, Tensor)
            else t
            for t in example
        ]
    FakeTensorProp(graph, fake).propagate_dont_convert_inputs(*moved)
    written: list[str] = []

    def keep(lowering: Any) -> None:
        written.append(lowering.codegen()[0].value)
        raise _Written

    with _as_on_a_gpu(keep), config.patch({"fx_graph_cache": False, "triton.cudagraphs": False}):
        try:
            compile_fx_inner(graph, moved)
        except Exception:
            if not written:
                raise
    return written[0]


def _as_on_a_gpu(compile_to_module: Callable) -> ExitStack:
    """What Inductor asks of a device is answered; `copy_` between tensors that are none needs no device."""
    import torch._inductor.scheduler as scheduler
    import torch.utils._triton as found
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.graph import GraphLowering
    from torch._subclasses.fake_tensor import FakeTensor
    from triton.backends.compiler import GPUTarget

    from emosteer.kernels.no_device import no_device

    plain = Tensor.copy_

    def copy_(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self if isinstance(self, FakeTensor) else plain(self, *args, **kwargs)

    def properties(device: Any = None) -> Any:
        return PROPERTIES

    def yes(*_: Any) -> bool:
        return True

    stack = ExitStack()
    for owner, name, value in (
        (GraphLowering, "compile_to_module", compile_to_module),
        (AsyncCompile, "triton", lambda *_, **__: None),
        (CudaInterface, "is_available", staticmethod(yes)),
        (CudaInterface, "get_compute_capability", staticmethod(lambda device=None: 90)),
        (CudaInterface, "get_device_properties", staticmethod(properties)),
        (CudaInterface.Worker, "get_device_properties", staticmethod(properties)),
        (torch.cuda, "get_device_properties", properties),
        (torch.cuda, "get_device_capability", lambda device=None: (9, 0)),
        (torch.cuda, "current_device", lambda: 0),
        (torch.cuda, "device_count", lambda: 1),
        (found, "has_triton", yes),
        (scheduler, "has_triton", yes),
        (Tensor, "copy_", copy_),
    ):
        if hasattr(owner, name):
            stack.enter_context(patch.object(owner, name, value))
    driver = stack.enter_context(no_device(GPUTarget("cuda", 90, 32)))
    driver.get_active_torch_device = lambda: CUDA  # type: ignore[attr-defined]
    return stack
