"""How long a kernel should take, from what it moves and what it waits for: every number here is *predicted*.

    time    = max(moved / (0.9 · published bandwidth), products / (0.6 · published flops)) + latency
    latency = START + trips · TRIP + reductions · REDUCTION + waves · steps · STEP
    waves   = ⌈blocks / (multiprocessors · blocks that one of them holds)⌉
    share   = time added to a decode step / time of the step without steering

A kernel of few rows waits more than it moves: for memory, as often as one load's address or use depends on
another (`trips`), for sums over a block (`reductions`), and for each turn of a loop (`steps`).

The constants below are assumptions, and `emosteer bench gpu` is there to replace them by measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

from .devices import Device

# What well-written copies reach of the published bandwidth, and matrix products of the published rate.
BANDWIDTH_SHARE, FLOPS_SHARE = 0.9, 0.6
# Seconds: from the launch to the first instruction and from the last store to the end; a load from memory that
# something waits for; a sum over the threads of a block, with its barriers; one turn of a loop over tiles, whose
# loads are on their way two turns ahead.
START, TRIP, REDUCTION, STEP = 1.0e-6, 0.6e-6, 0.15e-6, 0.35e-6
# Seconds of the caller's time for one launch outside a CUDA graph by a bound site (`bench/results/host_time.csv`
# and 2.5 µs of the driver's), and between two kernels inside one.
LAUNCH = {"cuda": 4.3e-6, "triton": 6.3e-6}
GRAPH_GAP = 1.2e-6
# The same for a norm of a steered model in eager code, one that steers and one that does not, and for an operation of
# torch's own; the kernels of an RMS norm as transformers writes it; one copy to another card.
NORM_LAUNCH = {"cuda": (7.0e-6, 12.2e-6), "triton": (9.4e-6, 9.4e-6)}
TORCH_LAUNCH, NORM_KERNELS, TRANSFER = 5.0e-6, 8, 10.0e-6
# Launches that the formula adds to a compiled pass with room for several directions a row
# (`tests/steering/compiled/test_kernels.py`); to a layer it adds none.
PASS_LAUNCHES = 8
# Products on tensor cores for one of float32 ("bf16x6"; "tf32x3" takes as long).
PRODUCTS = 6
# Threads that a multiprocessor holds of a kernel that keeps a row, and of one that multiplies tiles.
RESIDENT, RESIDENT_TILES = 512, 256
# Rows up to which a projection splits its columns between programs, the programs it wants, and the most parts.
FEW_ROWS, ENOUGH_BLOCKS, MOST_PARTS = 64, 264, 32


@dataclass(frozen=True)
class Work:
    """What one call has to do: `least` bytes whoever does it, `moved` bytes as the kernel does it, arithmetic, waits.

    Attributes:
        flops: on tensor cores, `scalar_flops`: in float32 without them.
        blocks: of the grid, `threads`: of each, of which `resident` fit a multiprocessor.
        trips: loads that wait for one another, in a row.
        reductions: over a block, in a row.
        steps: turns of the loop of one block, in a row.
        kernels: launches, one after the other.
    """

    least: float
    moved: float
    flops: float = 0.0
    scalar_flops: float = 0.0
    blocks: int = 1
    threads: int = 256
    resident: int = RESIDENT
    trips: int = 1
    reductions: int = 0
    steps: int = 0
    kernels: int = 1

    @property
    def excess(self) -> float:
        """Bytes moved over the least possible."""
        return self.moved / self.least

    def waves(self, device: Device) -> int:
        """How often all multiprocessors are filled."""
        at_once = device.multiprocessors * max(self.resident // self.threads, 1)
        return -(-self.blocks // at_once)

    def latency(self, device: Device) -> float:
        """Predicted seconds of waiting."""
        once = self.trips * TRIP + self.reductions * REDUCTION
        loop = self.waves(device) * self.steps * STEP
        return self.kernels * START + (self.kernels - 1) * GRAPH_GAP + once + loop

    def seconds(self, device: Device) -> float:
        """Predicted time on a device, launch not counted."""
        by_memory = self.moved / (BANDWIDTH_SHARE * device.bandwidth)
        by_products = self.flops / device.flops + self.scalar_flops / device.scalar_flops
        return max(by_memory, by_products / FLOPS_SHARE) + self.latency(device)


def work(op: str, tokens: int, dim: int, item: int, *, directions: int = 171, resident: bool = True) -> Work:
    """The work of one call on `tokens` rows of `dim` columns of `item` bytes.

    Steering: each token its own direction, as many as there are; rows that do not stay in registers
    (`resident` false) are read again for their projection and once more to be written. It waits for the
    row's record, for the direction that it names, and for the sums. Projections: a tile of 64 directions
    reads the rows once, counted in full although the L2 cache has them; few rows have their columns split
    between programs, and a second kernel adds up. The second moment: tiles of 128 columns below the
    diagonal, each reading the columns of both sides.
    """
    row = tokens * dim * item
    bank = 4.0 * dim * min(tokens, directions)
    passes = 1 if resident else -(-dim // 2048)
    threads = min(max(dim // 16, 64), 512)
    if op in ("steer_", "steer"):
        least = 2 * row + bank
        waits = {
            "blocks": tokens,
            "threads": threads,
            "trips": 2 + 2 * passes * (not resident),
            "reductions": 4,
        }
        return Work(least, least if resident else least + 2 * row, **waits)
    if op == "rms_norm":
        least = 2 * row + dim * item
        waits = {"blocks": tokens, "threads": threads, "trips": passes, "reductions": 2}
        return Work(least, least if resident else least + row, resident=2 * RESIDENT, **waits)
    if op == "steer_rms_norm_":
        least = 3 * row + bank + dim * item
        waits = {
            "blocks": tokens,
            "threads": threads,
            "trips": 2 + 3 * passes * (not resident),
            "reductions": 6,
        }
        return Work(least, least if resident else least + 3 * row, **waits)
    if op in ("project", "project_extremes_"):
        return _projection(row, tokens, dim, item, directions, written=op == "project")
    if op == "moments (sums)":
        waits = {"blocks": -(-tokens // 128) * -(-dim // 128), "threads": 128, "steps": 8}
        return Work(row + 8.0 * dim, row + 8.0 * dim, **waits)
    if op == "moments (triangle)":
        square = 4.0 * dim * dim  # half of it, read and written
        side = -(-dim // 128)
        waits = {"blocks": side * (side + 1) // 2, "resident": RESIDENT_TILES, "steps": -(-tokens // 16)}
        moved = (dim // 128 + 1) / 2 * row + square
        return Work(row + square, moved, PRODUCTS * tokens * float(dim) ** 2, **waits)
    raise ValueError(f"op {op!r} has no count of its bytes")


def parts(tokens: int, dim: int, directions: int) -> int:
    """Between how many programs the columns of a projection are split, 0 for none (`launches.splits`)."""
    if tokens > FEW_ROWS:
        return 0
    tiles = -(-directions // 16) * -(-tokens // 16)
    return max(min(-(-ENOUGH_BLOCKS // tiles), -(-dim // 256), MOST_PARTS), 1)


def _projection(row: float, tokens: int, dim: int, item: int, directions: int, *, written: bool) -> Work:
    out, bank = 4.0 * tokens * directions * written, 4.0 * dim * directions
    products = 2.0 * PRODUCTS * tokens * directions * dim
    if splits := parts(tokens, dim, directions):
        tiles = -(-directions // 16) * -(-tokens // 16)
        between = 4.0 * splits * tokens * directions
        moved = -(-directions // 16) * row + -(-tokens // 16) * bank + 2 * between + out
        waits = {
            "blocks": tiles * splits,
            "threads": 128,
            "steps": -(-dim // (32 * splits)),
            "trips": 2,
            "kernels": 2,
        }
        return Work(row + bank + out, moved, products, **waits)
    columns = 16 if item == 4 else 32
    waits = {
        "blocks": -(-directions // 64) * -(-tokens // 64),
        "resident": RESIDENT_TILES,
        "steps": -(-dim // columns),
    }
    return Work(row + bank + out, -(-directions // 64) * row + bank + out, products, **waits)


@dataclass(frozen=True)
class Decoder:
    """A language model as one decode step sees it; the default is a Llama of 8B parameters in bfloat16.

    Attributes:
        context: tokens in the cache of each sequence.
        launches: kernels of one step, written as leanly as can be.
        eager_launches: kernels of one step of transformers in eager code.
    """

    parameters: float = 8.03e9
    layers: int = 32
    dim: int = 4096
    kv_dim: int = 1024
    context: int = 2048
    launches: int = 480
    eager_launches: int = 1400
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
            "eager": self.layers * max(alone + GRAPH_GAP, LAUNCH[backend]) / eager,
            "graph": self.layers * (alone + GRAPH_GAP) / step,
            "fused": self.layers * (both - norm) / step,
        }

    def added(self, device: Device, batch: int, backend: str) -> dict[str, float]:
        """Seconds that steering every layer by `es.steer` adds to a step in its mode; less than 0: it takes less.

        eager: the norms run on the kernel, those that read a block steer too; a step takes what its caller or its
        device takes longer. two_cards: the same, and a copy of `token_row` to the other card. compiled: the formula
        inside the kernels that are there, which wait for a direction and three sums more.
        """
        step, norms = self.step(device, batch), 2 * self.layers + 1
        called = self.eager_launches * TORCH_LAUNCH
        steering, other = NORM_LAUNCH[backend]
        theirs = norms * NORM_KERNELS
        saved = theirs * TORCH_LAUNCH - self.layers * steering - (norms - self.layers) * other
        norm, both = (
            work(op, batch, self.dim, self.item).seconds(device) for op in ("rms_norm", "steer_rms_norm_")
        )
        on_device = theirs * START - norms * norm - self.layers * (both - norm)
        eager = max(step, called - saved) - max(step, called) - (on_device if step > called else 0.0)
        row = work("steer_", batch, self.dim, self.item)
        more = (row.least - 2 * batch * self.dim * self.item) / (BANDWIDTH_SHARE * device.bandwidth)
        layer = more + TRIP + 3 * REDUCTION
        return {
            "eager": eager,
            "two_cards": eager + TRANSFER,
            "compiled": self.layers * layer + PASS_LAUNCHES * (START + GRAPH_GAP),
        }
