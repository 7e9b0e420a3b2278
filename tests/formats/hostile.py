"""What any bytes may do to a reader: make a bank, or be refused by name. Shared by the fuzzers."""

from pathlib import Path

import torch

from emosteer.bank import Bank

from .banks import SUFFIX, WHOLE, full

# Names of the fuzzers' targets -> format, suffix.
TARGETS = {name: (name, suffix) for name, suffix in SUFFIX.items()}


def seeds(folder: Path) -> dict[str, bytes]:
    """A good file of each format; saklas's JSON lies in the folder already."""
    good = {}
    for name, suffix in SUFFIX.items():
        path = folder / f"{name}{suffix}"
        options = {} if name in WHOLE else {"length": "magnitude"}
        full(layers=(1, 2), dim=4).save(path, format=name, **options)
        good[name] = path.read_bytes()
    return good


def read(folder: Path, name: str, content: bytes) -> bool:
    """Whether the bytes make a bank; anything but a bank or a ValueError that names the file goes through."""
    path = folder / f"{name}{SUFFIX[name]}"
    path.write_bytes(content)
    try:
        bank = Bank.load(path, format=name)
    except ValueError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert str(path) in refusal, refusal
        assert len(refusal) < 1000, refusal
        return False
    for layer in bank.layers:
        length = torch.linalg.vector_norm(bank.directions[layer].double(), dim=1)
        assert bool(((length - 1).abs() < 1e-5).all())
    return True
