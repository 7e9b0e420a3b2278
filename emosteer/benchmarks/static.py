"""What every kernel takes of a GPU and how fast it should be, without one: `emosteer bench static`."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emosteer.ops import cuda_resources

from .devices import ARCHITECTURES, DEVICES, Device
from .predicted import LAUNCH, PRODUCTS, Decoder, Work, work

DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}
WIDTHS = (576, 2048, 4096, 8192, 16384)
TOKENS = (1, 32, 256, 4096, 65536)
BATCHES = (1, 32, 256)
# The variant that stands for an operation, and the operation that counts its bytes.
TRITON = {
    "steer (1 slot)": "steer_",
    "steer (16 slots)": "steer_",
    "steer_rms_norm (1 slot)": "steer_rms_norm_",
    "rms_norm": "rms_norm",
    "project (many)": "project",
    "project_extremes (many)": "project_extremes_",
    "moments (sums, grouped)": "moments (sums)",
    "moments (triangle)": "moments (triangle)",
}
CUDA = {"steer": "steer_", "steer_rms_norm": "steer_rms_norm_", "rms_norm": "rms_norm", "project": "project"}
LONGEST_RESIDENT = 8192
DIRECTIONS = 171
# Of rows that a norm follows, in Triton's kernels: bytes.
LONGEST_NORMED = 16 * 1024
HEAD = (
    "No GPU has run these kernels. Registers, shared memory, threads and spills are read from the machine code;\n"
    "occupancy follows from them and from the limits of a multiprocessor; everything else is **predicted**:\n\n"
    "    time    = max(bytes moved / (0.9 · published bandwidth), products / (0.6 · published flops)) + latency\n"
    "    latency = 1 µs a kernel + 0.6 µs for each load that waits for another + 0.15 µs for each sum over a block\n"
    "              + 0.35 µs for each turn of a loop over tiles, as often as the blocks fill the multiprocessors\n"
    "    share   = time that steering adds to a decode step / time of the step without it\n\n"
    "How bytes are counted, and every assumption: `emosteer/benchmarks/predicted.py`. Data sheets:\n"
    "`emosteer/benchmarks/devices.py`."
)


def rows(
    widths: tuple[int, ...] = WIDTHS,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    devices: tuple[Device, ...] = DEVICES,
) -> list[dict[str, Any]]:
    """One row for each backend, kernel, dtype, width and device."""
    return [*_triton_rows(widths, dtypes, devices), *_cuda_rows(widths, dtypes, devices)]


def _triton_rows(
    widths: tuple[int, ...], dtypes: tuple[str, ...], devices: tuple[Device, ...]
) -> Iterator[dict[str, Any]]:
    from emosteer.kernels.survey import Pick, survey

    picks = [
        Pick(name, dtype, dim, architecture)
        for dtype in dtypes
        for dim in widths
        for name in TRITON
        for architecture in dict.fromkeys(device.architecture for device in devices)
    ]
    for pick, found in survey(picks).items():
        yield from _predicted(
            "triton",
            pick.name,
            TRITON[pick.name],
            pick.dtype,
            pick.dim,
            pick.target,
            devices,
            found.registers,
            found.shared,
            found.threads,
            found.spills,
        )


def _cuda_rows(
    widths: tuple[int, ...], dtypes: tuple[str, ...], devices: tuple[Device, ...]
) -> Iterator[dict[str, Any]]:
    try:
        built = cuda_resources.architectures()
    except RuntimeError:
        return  # `missing` says so in the report
    wanted = {device.architecture for device in devices}
    for dtype in dtypes:
        for dim in widths:
            if dim > LONGEST_RESIDENT:
                continue
            for op, counted in CUDA.items():
                for architecture in (built_for for built_for in built if built_for in wanted):
                    found = cuda_resources.resources(op, dtype, dim, architecture=architecture)
                    shared = found.shared - ARCHITECTURES[architecture].block_shared
                    yield from _predicted(
                        "cuda",
                        op,
                        counted,
                        dtype,
                        dim,
                        architecture,
                        devices,
                        found.registers,
                        shared,
                        found.threads,
                        found.local,
                    )


def missing() -> str | None:
    """Why the CUDA kernels are not in the table, None where they are."""
    try:
        cuda_resources.architectures()
    except RuntimeError as error:
        return str(error)
    return None


def _predicted(
    backend: str,
    kernel: str,
    op: str,
    dtype: str,
    dim: int,
    architecture: str,
    devices: tuple[Device, ...],
    registers: int,
    shared: int,
    threads: int,
    spills: int,
) -> Iterator[dict[str, Any]]:
    limits = ARCHITECTURES[architecture]
    for device in devices:
        if device.architecture != architecture:
            continue
        yield {
            "backend": backend,
            "kernel": kernel,
            "dtype": dtype,
            "D": dim,
            "device": device.name,
            "architecture": architecture,
            "registers": registers,
            "shared_bytes": shared,
            "threads": threads,
            "spill_bytes": spills,
            "occupancy": f"{limits.occupancy(registers, shared, threads):.2f}",
            "blocks_32": (few := _counted(op, 32, dim, dtype, backend)).blocks,
            "serial_steps_32": few.waves(device) * few.steps,
            "kernels_32": few.kernels,
            "predicted_bytes_over_least": f"{_counted(op, 4096, dim, dtype, backend).excess:.2f}",
            **{
                f"predicted_us_{tokens}": f"{_counted(op, tokens, dim, dtype, backend).seconds(device) * 1e6:.2f}"
                for tokens in TOKENS
            },
        }


def _counted(op: str, tokens: int, dim: int, dtype: str, backend: str) -> Work:
    resident = dim <= LONGEST_RESIDENT
    if backend == "triton" and op == "steer_rms_norm_":
        resident = dim * DTYPES[dtype] <= LONGEST_NORMED
    counted = work(op, tokens, dim, DTYPES[dtype], resident=resident)
    if backend == "cuda" and op == "project":  # no tensor cores; a block for each row and four directions
        blocks, moved = (
            tokens * -(-DIRECTIONS // 4),
            counted.least + 4.0 * dim * DIRECTIONS * (tokens - 1) / 4,
        )
        waits = {"blocks": blocks, "threads": min(max(dim // 16, 32), 512), "resident": 1024, "trips": 2}
        return Work(counted.least, moved, scalar_flops=counted.flops / PRODUCTS, reductions=1, **waits)
    return counted


def shares() -> list[dict[str, Any]]:
    """The predicted share of a decode step of an 8B model, all layers steered, and µs that `es.steer` adds to it."""
    model = Decoder()
    return [
        {
            "backend": backend,
            "device": device.name,
            "batch": batch,
            "predicted_step_us": f"{model.step(device, batch) * 1e6:.0f}",
            **{
                f"predicted_{mode}": f"{share:.2%}"
                for mode, share in model.shares(device, batch, backend).items()
            },
            **{
                f"predicted_added_us_{mode}": f"{seconds * 1e6:+.0f}"
                for mode, seconds in model.added(device, batch, backend).items()
            },
        }
        for backend in LAUNCH
        for device in DEVICES
        for batch in BATCHES
        if backend == "triton" or device.architecture.startswith("sm_")
    ]


def write(folder: Path, found: list[dict[str, Any]]) -> tuple[Path, Path, Path]:
    """`static.csv` with every row, `static_shares.csv` with the shares of a step, `static.md` with both to read."""
    folder.mkdir(parents=True, exist_ok=True)
    table, of_step, page = (folder / name for name in ("static.csv", "static_shares.csv", "static.md"))
    dtypes = dict.fromkeys(row["dtype"] for row in found)
    only = "".join(f" --dtype {dtype}" for dtype in dtypes) if len(dtypes) < len(DTYPES) else ""
    for path, rows_of in ((table, found), (of_step, shares())):
        with path.open("w", newline="") as file:
            file.write(f"# emosteer bench static{only}; predicted, no GPU has run these kernels\n")
            writer = csv.DictWriter(file, list(rows_of[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows_of)
    page.write_text(markdown(found))
    return table, of_step, page


def markdown(found: list[dict[str, Any]]) -> str:
    """Times for bfloat16 at D = 4096 (or the first width there is), the shares of a step, what each kernel takes."""
    width = 4096 if any(row["D"] == 4096 for row in found) else found[0]["D"]
    dtype = "bfloat16" if any(row["dtype"] == "bfloat16" for row in found) else found[0]["dtype"]
    chosen = [row for row in found if row["D"] == width and row["dtype"] == dtype]
    left_out = missing()
    note = f"\nThe CUDA kernels are left out: {left_out.split(';')[0]}.\n" if left_out else ""
    return (
        f"# Kernels without a GPU\n\n{HEAD}\n{note}\n"
        f"## {dtype}, D = {width}; predicted µs for 1 to 65,536 tokens\n\n{_table(chosen, skip=('dtype', 'D'))}\n"
        f"## Predicted share of a decode step, 8B parameters, all 32 layers steered\n\n"
        f"eager: a kernel and its launch a layer; graph: the same inside a CUDA graph; fused: what steering inside\n"
        f"the norm adds to the norm. Added µs: what `es.steer` adds to a step of transformers, where the other norms\n"
        f"are computed by the kernel too: in eager code, over two cards, and compiled in a CUDA graph.\n\n"
        f"{_table(shares())}\n"
        f"## Every dtype and width: registers / shared bytes / occupancy\n\n{_table(_taken(found))}"
    )


def _taken(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each kernel takes of a multiprocessor, an architecture a column."""
    table: dict[tuple, dict[str, Any]] = {}
    architectures = dict.fromkeys(row["architecture"] for row in found)
    for row in found:
        which = {key: row[key] for key in ("backend", "kernel", "dtype", "D")}
        cells = table.setdefault(tuple(which.values()), which | dict.fromkeys(architectures, "–"))
        cells[row["architecture"]] = f"{row['registers']} / {row['shared_bytes']} / {row['occupancy']}"
    return list(table.values())


def _table(found: list[dict[str, Any]], skip: tuple[str, ...] = ()) -> str:
    keys = [key for key in found[0] if key not in skip]
    lines = [keys, ["---"] * len(keys), *([str(row[key]) for key in keys] for row in found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
