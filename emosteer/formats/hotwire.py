"""hotwire's direction files: one tensor `(layers, hidden)` saved with `torch.save`, row `l` for block `l`.

A row of zeros stands for a layer that has no vector. The vector's name is the file's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from . import note, torch_file
from .vectors import MAX_LAYER, Vectors, by_layer, rows_of

LABEL = "hotwire file"
ONE_CONCEPT = True


def matches(content: Any) -> bool:
    """Whether a file of `torch.save` holds this."""
    return isinstance(content, torch.Tensor)


def read(path: Path) -> Vectors:
    """One concept, named as the file unless the note says otherwise."""
    content, said = torch_file.read(path)
    if isinstance(content, dict):  # as hotwire does: the first tensor of a dict
        content = next((value for value in content.values() if isinstance(value, torch.Tensor)), None)
    if not isinstance(content, torch.Tensor):
        raise ValueError(f"it must hold a tensor (layers, hidden), got {type(content).__name__}")
    if content.ndim == 1:
        raise ValueError(
            f"it holds one vector, shape {list(content.shape)}, and does not say of which layer; "
            "say so with Bank.of({layer: torch.load(path, weights_only=True)}, name)"
        )
    table = rows_of(content, "its tensor")
    if len(table) > MAX_LAYER + 1:
        raise ValueError(f"it has {len(table)} rows, one a layer; no model has so many")
    rows = by_layer((layer, row[None].clone()) for layer, row in enumerate(table) if bool(row.any()))
    return Vectors([path.stem], rows) if said is None else note.from_text(rows, said)


def write(vectors: Vectors, path: Path, *, length: str = "magnitude", n_layers: int | None = None) -> None:
    """Write one concept.

    Args:
        vectors: of one concept.
        path: the file; hotwire names the vector after it.
        length: of the rows, see `note.rows_and_note`.
        n_layers: how many rows to write, the model's blocks; up to the last layer there is if None.
    """
    rows, said = note.rows_and_note(vectors, length)
    least = max(rows) + 1
    n = least if n_layers is None else n_layers
    if not isinstance(n, int) or not least <= n <= MAX_LAYER + 1:
        raise ValueError(f"n_layers must be at least {least}, for layer {least - 1}, got {n_layers!r}")
    table = torch.zeros(n, next(iter(rows.values())).shape[1])
    for layer, row in rows.items():
        table[layer] = row[0]
    torch_file.write(path, table, note.to_text(said))
