"""Coverage-guided fuzzing of every reader of `emosteer.formats`, with atheris (the extra `fuzz`).

    python -m tests.fuzz.formats [-max_total_time=600] [any option of libFuzzer]

The first byte says the format, the rest is the file. Whatever is no bank and no ValueError that names
the file stops the run, as do 2 GiB of memory and 20 seconds for one file.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["emosteer", "zipfile", "pickletools"]):
    from emosteer import formats

    for each in formats.MODULES:
        formats.module(each)
    from tests.formats.banks import SUFFIX
    from tests.formats.hostile import read, seeds

NAMES = list(SUFFIX)
folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def one(data: bytes) -> None:
    if data:
        read(folder, NAMES[data[0] % len(NAMES)], data[1:])


def main() -> None:
    corpus = Path(tempfile.mkdtemp())
    for i, (name, content) in enumerate(seeds(folder).items()):
        (corpus / name).write_bytes(bytes([i]) + content)
    options = ["-max_len=16384", "-rss_limit_mb=2048", "-timeout=20", *sys.argv[1:]]
    if not any(option.startswith("-max_total_time") for option in options):
        options.append("-max_total_time=600")
    atheris.Setup([sys.argv[0], str(corpus), *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
