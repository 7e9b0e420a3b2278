"""What a call of the GPU backends costs its caller, with the launch itself stubbed: `python bench/host_time.py`.

The CUDA module is the host build of the tests, whose launches are counted and not made; Triton compiles for
an H100 that is not there and hands its launches to a counter in place of the driver's function. What is left
is what Python, torch and the launchers take, on the processor that runs this. One decode step of a layer:
`steer_rms_norm_` of B=4 rows of 4096 bfloat16, by a bound site, by a norm that `es.steer` has replaced, by the
backend's operation, and by the registered operator; and `steer_` of them, where no norm reads a block's output.
"""

from __future__ import annotations

import csv
import ctypes
import statistics
import sys
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from time import thread_time
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.common import PACKAGES, machine
from emosteer import ops
from emosteer.models.forwards import BlockForward, NormForward
from emosteer.models.levels import IN_PLACE, Level
from emosteer.models.norms import RmsNorm
from emosteer.ops import Site, SteerSite, SteerTable, backends, cuda, triton

RESULTS = Path(__file__).parent / "results" / "host_time.csv"
VERSIONS = (*PACKAGES, "triton")
ROUNDS, CALLS = 25, 1000


def norm_of_a_layer(weight, directions, table) -> NormForward:
    """As `es.steer` leaves it, in the middle of a pass, right behind its block."""
    level = Level()
    level.active, level.table = True, table
    level.now.mode, level.now.fused = IN_PLACE, True
    block = BlockForward(level)
    block.steers(0, 0, directions, 1.0, ())
    norm = NormForward(level)
    module = torch.nn.RMSNorm(len(weight), dtype=weight.dtype)
    norm.stands_for(RmsNorm(module, 1e-6, 0.0), block)
    return norm


def block_at_its_output(directions, table, x) -> BlockForward:
    """As `es.steer` leaves it, in the middle of a pass: a block that is over at once."""
    level = Level()
    level.active, level.table, level.now.mode = True, table, IN_PLACE
    level.now.token_row = None
    block = BlockForward(level)
    block.steers(0, 0, directions, 1.0, None)
    block.original = lambda: x
    return block


def ways(backend):
    """The calls by name, of one layer's tensors."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 4096).bfloat16(), torch.ones(4096, dtype=torch.bfloat16)
    directions = torch.nn.functional.normalize(torch.randn(171, 4096), dim=1)
    table = SteerTable.empty(4)
    table.direction[:, 0] = torch.arange(4)
    site, output = Site(weight, directions, table), SteerSite(directions, table)
    direct = x, weight, directions, table, None, 1.0, None, 1e-6, 0.0
    patched, other = norm_of_a_layer(weight, directions, table), norm_of_a_layer(weight, directions, table)
    other.layer = None
    block = block_at_its_output(directions, table, x)

    def replaced():
        patched.level.now.pending, patched.level.now.left = patched.layer, x
        patched(x)

    columns = table.columns()
    operator = torch.ops.emosteer.steer_rms_norm_.default
    return {
        "a bound site": lambda: site(x),
        "a norm of es.steer": replaced,
        "another norm of it": lambda: other(x),
        "the backend's operation": lambda: backend.steer_rms_norm_(*direct),
        "the registered operator": lambda: operator(
            x, weight, directions, *columns, None, 1.0, None, 1e-6, 0.0
        ),
        "steer_ by a bound site": lambda: output(x),
        "steer_ by a block of es.steer": block,
        "steer_ by the backend's operation": lambda: backend.steer_(x, directions, table, None, 1.0),
        "steer_ by emosteer.ops": lambda: ops.steer_(x, directions, table),
        "torch.empty_like alone": lambda: torch.empty_like(x),
    }


@contextmanager
def cuda_without_launches():
    from tests.ops import host

    with host.installed() as module, ops.backend("cuda"):
        counts = ctypes.c_int64.in_dll(ctypes.CDLL(module.__file__), "host_counts_only")
        counts.value = 1
        try:
            yield cuda, lambda: counts.value
        finally:
            counts.value = 0


@contextmanager
def triton_without_launches():
    from triton.backends.nvidia import driver as nvidia

    from emosteer.kernels.no_device import no_device
    from emosteer.kernels.offline import TARGETS

    torch._C._cuda_getDevice = lambda: None
    torch._C._cuda_getCurrentRawStream = lambda _device: 0
    triton.unavailable = lambda: None
    backends.unavailable.cache_clear()
    with no_device(TARGETS["sm_90"]) as stub, ops.backend("triton"):
        # Triton's own launcher, down to the function that would hand the arguments to the driver.
        stub.utils.launch, stub.launcher_cls = stub.count, nvidia.CudaLauncher
        nvidia.PyKernelArg, nvidia.make_kernel_signature = SimpleNamespace, lambda signature: b""
        yield triton, lambda: stub.launched


def measured(calls, launched):
    """Seconds of this thread's CPU time a call, for each round and way: a machine that is shared does not tell."""
    times = {way: [] for way in calls}
    for round_ in range(ROUNDS + 1):
        for way, run in calls.items():
            before, began = launched(), thread_time()
            for _ in range(CALLS):
                run()
            if round_:
                times[way].append((thread_time() - began) / CALLS)
            elif ("alone" in way) != (launched() == before):
                raise RuntimeError(f"{way}: {launched() - before} launches were counted")
    return times


def rows():
    for name, stubbed in (("cuda", cuda_without_launches), ("triton", triton_without_launches)):
        with torch.no_grad(), stubbed() as (backend, launched):
            for way, times in measured(ways(backend), launched).items():
                low, middle, high = (value * 1e6 for value in statistics.quantiles(times, n=4))
                yield {
                    "backend": name,
                    "call": way,
                    "median_us": f"{middle:.2f}",
                    "q1_us": f"{low:.2f}",
                    "q3_us": f"{high:.2f}",
                }


def main() -> None:
    torch.set_num_threads(1)
    found = list(rows())
    with RESULTS.open("w", newline="") as file:
        file.write(f"# python bench/host_time.py; CPU time a call\n# {date.today()}: {machine(VERSIONS)}\n")
        writer = csv.DictWriter(file, list(found[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    for row in found:
        print("{backend:7} {call:26} {median_us:>7} µs  ({q1_us} to {q3_us})".format(**row))


if __name__ == "__main__":
    main()
