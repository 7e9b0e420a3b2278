"""How long a kernel should take, from the bytes it has to move: every number here is *predicted*.

    time  = max(bytes moved / (0.9 · published bandwidth), products / (0.6 · published flops), floor)
    share = time added to a decode step / time of the step without steering

The constants below are assumptions, and `emosteer bench gpu` is there to replace them by measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from .devices import Device

# What well-written copies reach of the published bandwidth, and matrix products of the published rate.
BANDWIDTH_SHARE, FLOPS_SHARE = 0.9, 0.6
# Seconds: a kernel that reads one row, reduces it three times and writes it, with nothing to wait for.
KERNEL_FLOOR = 2e-6
# Seconds of the caller's time for one launch outside a CUDA graph (Triton's launcher is Python), and
# between two kernels inside one.
LAUNCH = {"cuda": 4e-6, "triton": 12e-6}
GRAPH_GAP = 1.2e-6
# Seconds that steering inside a norm adds to it when neither is bound by bandwidth: one more load that
# depends on another, two more reductions.
FUSED_LATENCY = 0.5e-6
# Products on tensor cores for one of float32 ("bf16x6").
PRODUCTS = 6


@dataclass(frozen=True)
class Work:
    """What one call has to do: `least` bytes whoever does it, `moved` bytes as the kernel does it, and arithmetic.

    Attributes:
        flops: on tensor cores, `scalar_flops`: in float32 without them.
    """

    least: float
    moved: float
    flops: float = 0.0
    scalar_flops: float = 0.0

    @property
    def excess(self) -> float:
        """Bytes moved over the least possible."""
        return self.moved / self.least

    def seconds(self, device: Device) -> float:
        """Predicted time on a device, launch not counted."""
        by_memory = self.moved / (BANDWIDTH_SHARE * device.bandwidth)
        by_products = self.flops / device.flops + self.scalar_flops / device.scalar_flops
        return max(by_memory, by_products / FLOPS_SHARE, KERNEL_FLOOR)


def work(op: str, tokens: int, dim: int, item: int, *, directions: int = 171, resident: bool = True) -> Work:
    """The work of one call on `tokens` rows of `dim` columns of `item` bytes.

    Steering: each token its own direction, as many as there are; rows that do not stay in registers
    (`resident` false) are read again for their projection and once more to be written. Projections: a
    tile of 64 directions reads the rows once, counted in full although the L2 cache has them. The
    second moment: tiles of 128 columns below the diagonal, each reading the columns of both sides.
    """
    row = tokens * dim * item
    bank = 4.0 * dim * min(tokens, directions)
    if op in ("steer_", "steer"):
        least = 2 * row + bank
        return Work(least, least if resident else least + 2 * row)
    if op == "rms_norm":
        least = 2 * row + dim * item
        return Work(least, least if resident else least + row)
    if op == "steer_rms_norm_":
        least = 3 * row + bank + dim * item
        return Work(least, least if resident else least + 3 * row)
    if op in ("project", "project_extremes_"):
        out = 4.0 * tokens * directions * (op == "project")
        tiles = -(-directions // 64)
        products = 2.0 * PRODUCTS * tokens * directions * dim
        return Work(row + 4.0 * dim * directions + out, tiles * row + 4.0 * dim * directions + out, products)
    if op == "moments (sums)":
        return Work(row + 8.0 * dim, row + 8.0 * dim)
    if op == "moments (triangle)":
        square = 4.0 * dim * dim  # half of it, read and written
        return Work(row + square, (dim // 128 + 1) / 2 * row + square, PRODUCTS * tokens * float(dim) ** 2)
    raise ValueError(f"op {op!r} has no count of its bytes")


@dataclass(frozen=True)
class Decoder:
    """A language model as one decode step sees it; the default is a Llama of 8B parameters in bfloat16.

    Attributes:
        context: tokens in the cache of each sequence.
        launches: kernels of one step.
    """

    parameters: float = 8.03e9
    layers: int = 32
    dim: int = 4096
    kv_dim: int = 1024
    context: int = 2048
    launches: int = 480
    item: int = 2

    def step(self, device: Device, batch: int) -> float:
        """Predicted seconds of one step on a device that is never idle."""
        cache = 2.0 * batch * self.context * self.layers * self.kv_dim * self.item
        by_memory = (self.parameters * self.item + cache) / (BANDWIDTH_SHARE * device.bandwidth)
        return max(by_memory, 2 * self.parameters * batch / (FLOPS_SHARE * device.flops))

    def shares(self, device: Device, batch: int, backend: str) -> dict[str, float]:
        """What steering every layer adds to a step, as a share of it, in three modes.

        eager: a kernel and its launch for each layer; a step takes at least its own launches.
        graph: a kernel and a gap for each layer in a CUDA graph.
        fused: what `steer_rms_norm_` takes longer than the `rms_norm` whose place it takes.
        """
        step = self.step(device, batch)
        alone = work("steer_", batch, self.dim, self.item).seconds(device)
        norm, both = (
            work(op, batch, self.dim, self.item).seconds(device) for op in ("rms_norm", "steer_rms_norm_")
        )
        eager = max(step, self.launches * LAUNCH["cuda"])
        return {
            "eager": self.layers * max(alone, LAUNCH[backend]) / eager,
            "graph": self.layers * (alone + GRAPH_GAP) / step,
            "fused": self.layers * max(both - norm, FUSED_LATENCY) / step,
        }
