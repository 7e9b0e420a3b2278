"""Where the rows of a tensor lie, whatever its leading dimensions."""

from __future__ import annotations

from torch import Tensor


def collapsed(x: Tensor) -> tuple[int, int, int] | None:
    """`(inner, outer stride, inner stride)` in elements: row n begins at (n // inner)·outer + (n % inner)·inner stride.

    None where the leading dimensions do not collapse to two.
    """
    if x.is_contiguous():
        return 1, x.shape[-1], 0
    sizes: list[int] = []
    strides: list[int] = []
    for size, stride in zip(x.shape[:-1], x.stride()[:-1]):
        if size == 1:
            continue
        if sizes and strides[-1] == size * stride:  # collapses into the dimension before
            sizes[-1], strides[-1] = sizes[-1] * size, stride
        else:
            sizes.append(size)
            strides.append(stride)
    if len(sizes) > 2:
        return None
    if len(sizes) == 2:
        return sizes[1], strides[0], strides[1]
    return 1, strides[0] if strides else x.shape[-1], 0
