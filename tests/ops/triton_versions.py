"""Every kind of kernel compiled with the Triton that is installed, whichever version: `make test-triton-versions`.

`python -m tests.ops.triton_versions sm_80` prints one line; it fails where a kernel does not compile. Some spill
a few registers with the older ones, which costs time and nothing else (`test_triton_machine_code` admits none
with the Triton of the tests). One target a process, since a Triton remembers the one it compiles for.

Triton 3.3 and 3.4 link code for AMD with a linker that they do not bring. What is read here is what is linked, so
nothing does the linking for them.
"""

import os
import shutil
import sys

import torch
import triton

from emosteer.kernels import no_device, variants
from emosteer.kernels.capability import precision
from emosteer.kernels.offline import TARGETS, read

# Rows in registers and rows in blocks, aligned and not, of two and of four bytes an element.
KINDS = ((torch.bfloat16, 4096), (torch.float32, 4096), (torch.bfloat16, variants.UNALIGNED))


os.environ.setdefault("TRITON_HIP_LLD_PATH", shutil.which("true") or "")


def main(target: str) -> None:
    gpu, failed, most, count, spilled = TARGETS[target], [], 0, 0, 0
    with no_device.no_device(gpu):
        for dtype, dim in KINDS:
            for name, launch in variants.of(dtype, dim):
                kind = f"{name} of {dim} {dtype}"
                try:
                    found, _ = read(no_device.compile(launch, gpu), launch, target)
                except Exception as error:
                    failed.append(f"{kind}: {type(error).__name__}: {str(error)[-300:]}")
                    continue
                count, most = count + 1, max(most, found.registers)
                spilled += found.spills > 0
    print(
        f"triton {triton.__version__} {target}: {count} kernels compiled, products by {precision(gpu.backend)}, "
        f"at most {most} registers, {spilled} spill, {len(failed)} failed",
        flush=True,
    )
    sys.exit("\n".join(failed) or None)


if __name__ == "__main__":
    main(sys.argv[1])
