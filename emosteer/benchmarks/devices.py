"""Published figures of GPUs, and what a multiprocessor of each can hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """The limits of one multiprocessor (NVIDIA: CUDA C++ Programming Guide, "Compute Capabilities"; AMD: CDNA 3 ISA).

    Attributes:
        registers: 32-bit registers; on AMD of the vector registers of all four SIMDs.
        register_unit: registers are given out to a warp in multiples of this many.
        shared: bytes, with `block_shared` taken by the system for each block.
        warps, blocks: resident at most.
    """

    registers: int
    register_unit: int
    shared: int
    block_shared: int
    warps: int
    blocks: int
    warp_size: int

    def resident_threads(self, registers: int, shared: int, threads: int) -> int:
        """Threads of a kernel that one multiprocessor holds at once (the occupancy, times `warps·warp_size`)."""
        warps = -(-threads // self.warp_size)
        per_warp = -(-registers * self.warp_size // self.register_unit) * self.register_unit
        by_registers = self.registers // max(per_warp, 1) // warps
        by_shared = self.shared // (shared + self.block_shared) if shared + self.block_shared else self.blocks
        blocks = min(by_registers, by_shared, self.warps // warps, self.blocks)
        return blocks * threads

    def occupancy(self, registers: int, shared: int, threads: int) -> float:
        """Resident threads of the most there can be."""
        return self.resident_threads(registers, shared, threads) / (self.warps * self.warp_size)


ARCHITECTURES = {
    "sm_80": Architecture(65536, 256, 164 * 1024, 1024, 64, 32, 32),
    "sm_90": Architecture(65536, 256, 228 * 1024, 1024, 64, 32, 32),
    "sm_100": Architecture(65536, 256, 228 * 1024, 1024, 64, 32, 32),
    "gfx942": Architecture(4 * 512 * 64, 8 * 64, 64 * 1024, 0, 32, 32, 64),
}


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it.

    Attributes:
        architecture: a key of `ARCHITECTURES`.
        bandwidth: of its memory, bytes a second.
        flops: dense bfloat16 with float32 sums, a second.
        scalar_flops: float32 without tensor cores, a second.
        multiprocessors: how many (compute units, on AMD).
    """

    name: str
    architecture: str
    bandwidth: float
    flops: float
    scalar_flops: float
    multiprocessors: int


DEVICES = (
    Device("A100", "sm_80", 2.039e12, 312e12, 19.5e12, 108),  # SXM, 80 GB
    Device("H100", "sm_90", 3.35e12, 989e12, 67e12, 132),  # SXM
    Device("H200", "sm_90", 4.8e12, 989e12, 67e12, 132),
    Device("B200", "sm_100", 8.0e12, 2250e12, 75e12, 148),
    Device("MI300X", "gfx942", 5.3e12, 1307e12, 163e12, 304),
)
