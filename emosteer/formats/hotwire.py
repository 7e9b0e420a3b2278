"""One tensor `(layers, hidden)` saved with `torch.save`: hotwire's direction files, and persona vectors.

hotwire's row `l` is for block `l`; a row of zeros stands for a layer that has no vector. Persona vectors and
others who average `hidden_states` have one row more than there are blocks, that of the embeddings first. The
file does not say which: the model's depth does, or the caller. The vector's name is the file's.
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


def read(
    path: Path, *, layer_offset: int | None = None, depth: int | None = None, named: bool = True
) -> Vectors:
    """One concept, named as the file unless the note says otherwise.

    Args:
        path: the file.
        layer_offset: row `r` is of layer `r + layer_offset`: 0 for hotwire, −1 for `hidden_states`.
        depth: the model's number of blocks, which decides where `layer_offset` is None.
        named: whether the caller said that this is hotwire's format, which decides where neither is given.

    Raises:
        ValueError: nothing says how the rows are counted, or the depth fits neither way.
    """
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
    if not bool(table.any()):
        raise ValueError("it holds no vector: its tensor is all zero")
    if said is not None and layer_offset is None:
        layer_offset = 0
    offset = _offset(len(table), depth, named) if layer_offset is None else layer_offset
    # Below block 0 are the embeddings, which no block hands on.
    rows = by_layer(
        (row + offset, vector[None].clone())
        for row, vector in enumerate(table)
        if bool(vector.any()) and row + offset >= 0
    )
    return Vectors([path.stem], rows) if said is None else note.from_text(rows, said)


def _offset(rows: int, depth: int | None, named: bool) -> int:
    if depth is None and named:
        return 0
    if depth is None:
        raise ValueError(
            f"it has {rows} rows and does not say how they are counted: row l for block l of {rows} blocks (hotwire: "
            f"layer_offset=0), or hidden_states of {rows - 1} blocks, the embeddings first (persona vectors: "
            f"layer_offset=-1); pass layer_offset=, or depth= of the model"
        )
    if rows not in (depth, depth + 1):
        raise ValueError(
            f"it has {rows} rows, the model has {depth} blocks: a file for it has {depth} rows, or {depth + 1} with "
            f"the embeddings; pass layer_offset= if you know how this one counts"
        )
    return depth - rows


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
