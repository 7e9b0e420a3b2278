"""Bugs planted in a copy of the checkout, each of which the level `quick` must catch: `python -m tests.planted [name]`.

Prints for each whether its test failed and took the time; exit status 1 where one went unseen.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Bug:
    """A text that occurs once in a file, what is put instead, and the test that must fail."""

    file: str
    old: str
    new: str
    test: str
    symptom: str


SANITIZERS = "tests/ops/test_cuda_bugs.py::test_sanitizers_are_silent"
KILLS = "tests/sweep/test_kill.py::test_killed_at_random_moments"
BUGS = {
    "a CUDA kernel uses more shared memory than it has": Bug(
        "kernels/cuda/rows.cuh",
        "cells + turn * warps * kWarp",
        "cells + 2 * warps * kWarp",
        SANITIZERS,
        "AddressSanitizer",
    ),
    "a CUDA kernel takes 16 bytes where rows are not aligned": Bug(
        "kernels/cuda/packets.cuh",
        "if (aligned && at + kCount <= dim) return load",
        "if (at + kCount <= dim) return load",
        SANITIZERS,
        "misaligned address",
    ),
    "a sweep reports rows before they are written": Bug(
        "emosteer/sweep/store/folder.py",
        "        self._write(name, part_bytes(table_of(rows)))\n",
        "        self._held, rows = rows, getattr(self, '_held', rows[:0])\n"
        "        self._write(name, part_bytes(table_of(rows)))\n",
        KILLS,
        "assert",
    ),
    "a sweep's part is there before it is whole": Bug(
        "emosteer/sweep/store/places.py",
        "                file.write(content)\n                file.flush()\n",
        "                file.write(content[:9])\n                file.flush()\n"
        "                os.link(temporary, self.path / name)\n                import time\n\n"
        "                time.sleep(0.1)\n                file.write(content[9:])\n                file.flush()\n",
        KILLS,
        "Error",
    ),
    "a GGUF file may declare more than it holds": Bug(
        "emosteer/formats/gguf_container.py",
        "        if n * least > left:",
        "        if False:",
        "tests/formats/test_malformed.py",
        "FAILED",
    ),
    "a file of torch may name any code": Bug(
        "emosteer/formats/torch_file.py",
        'if code in ("GLOBAL", "INST") and not',
        'if code in ("GLOBAL", "INST") and False and not',
        "tests/formats",
        "FAILED",
    ),
    "an array may unpack to more than there is memory": Bug(
        "emosteer/formats/npz.py",
        "            if unpacked > max(_RATIO * size, _FREE):",
        "            if False:",
        "tests/formats",
        "FAILED",
    ),
}


def copy(folder: Path) -> None:
    """What a commit would hold, and the modules that are built."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in [*names, *(str(path.relative_to(ROOT)) for path in ROOT.glob("emosteer/*.so"))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)


def caught(bug: Bug, folder: Path) -> bool:
    """Whether the test fails on the bug and says what is expected of it."""
    file = folder / bug.file
    sound = file.read_text()
    if sound.count(bug.old) != 1:
        raise ValueError(f"{bug.old!r} occurs {sound.count(bug.old)} times in {bug.file}, expected once")
    file.write_text(sound.replace(bug.old, bug.new))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not gpu", bug.test]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    finally:
        file.write_text(sound)
    return done.returncode == 1 and bug.symptom in done.stdout


def main() -> None:
    wanted = " ".join(sys.argv[1:])
    unseen = 0
    with tempfile.TemporaryDirectory() as folder:
        copy(Path(folder))
        for name, bug in BUGS.items():
            if wanted in name:
                began = time.perf_counter()
                found = caught(bug, Path(folder))
                unseen += not found
                said = "caught" if found else "UNSEEN"
                print(f"{said} in {time.perf_counter() - began:.0f} s: {name}: {bug.test}", flush=True)
    sys.exit(bool(unseen))


if __name__ == "__main__":
    main()
