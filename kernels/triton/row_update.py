"""The row update of a steering table, for a row held in registers.

Everything in it is homogeneous: a row scaled by a power of two, with its unit of length, is steered to
the same row scaled. So each row is first brought near 1, exactly, and no square overflows or vanishes.
Norms that would be small differences of large sums are taken from the vectors themselves.
"""

import triton
import triton.language as tl

from .rows import element, length, power_of_two
from .solve import added, inverse_gram, keep_orthogonal, turn


@triton.jit
def direction_row(bank, k, at, fits):
    """Direction `k`, zeros for an empty slot or an index outside the bank `(directions, n_directions, dim)`."""
    directions, n_directions, dim = bank
    v = tl.zeros(at.shape, dtype=tl.float32)
    if (k >= 0) & (k < n_directions):
        v = tl.load(directions + k.to(tl.int64) * dim + at, mask=fits, other=0.0)
    return v


@triton.jit
def table_row(token_row, n, rows, spread, programs):
    """The table row of token `n` of `rows`, −1 where there is none: its own −1, or an index outside the table.

    Each row of the table serves `spread` tokens on end; a spread of 0 asks `token_row`.
    """
    if spread > 0:
        row = n // spread
    else:
        row = tl.load(token_row + n, mask=n < rows, other=-1).to(tl.int64)
    return tl.where((n < rows) & (row >= 0) & (row < programs), row, -1)


@triton.jit
def gram_of(bank, direction, first, slots, at, fits, SLOTS: tl.constexpr):
    """The dot products of a table row's directions with each other, `[SLOTS, SLOTS]`."""
    i = tl.arange(0, SLOTS)
    gram = tl.zeros([SLOTS, SLOTS], dtype=tl.float32)
    for s in range(slots):
        v = direction_row(bank, tl.load(direction + first + s), at, fits)
        for t in range(s + 1):
            w = direction_row(bank, tl.load(direction + first + t), at, fits)
            here = ((i[:, None] == s) & (i[None, :] == t)) | ((i[:, None] == t) & (i[None, :] == s))
            gram = tl.where(here, tl.sum(v * w, axis=0), gram)
    return gram


@triton.jit
def orthogonal_part(z, bank, direction, first, slots, at, fits, SLOTS: tl.constexpr):
    """The part of `z` orthogonal to the row's directions; the rest of it lies in their span.

    Taken out twice: the second time removes what rounding, or lengths that are 1 only nearly,
    left in it the first time.
    """
    rest = z
    if SLOTS == 1:
        v = direction_row(bank, tl.load(direction + first), at, fits)
        for _ in range(2):
            rest -= tl.sum(rest * v, axis=0) * v
    else:
        i = tl.arange(0, SLOTS)
        gram = gram_of(bank, direction, first, slots, at, fits, SLOTS)
        inverse = inverse_gram(gram, slots, SLOTS)
        for _ in range(2):
            p = tl.zeros([SLOTS], dtype=tl.float32)
            for s in range(slots):
                v = direction_row(bank, tl.load(direction + first + s), at, fits)
                p = tl.where(i == s, tl.sum(rest * v, axis=0), p)
            shares = tl.sum(inverse * p[None, :], axis=1)
            for s in range(slots):
                v = direction_row(bank, tl.load(direction + first + s), at, fits)
                rest -= element(shares, s) * v
    return rest


@triton.jit
def turn_row(z, v, p, norm, angle):
    """`turn` with the row's part across `v` taken from the vectors, as in `orthogonal_part`."""
    across = z - p * v
    again = tl.sum(across * v, axis=0)
    across -= again * v
    size = tl.sqrt(tl.sum(v * v, axis=0))
    return turn((p + again) * size, tl.sqrt(tl.sum(across * across, axis=0)), norm, size, angle)


@triton.jit
def steered(x, at, fits, row, bank, table, scale, SLOTS: tl.constexpr):
    """`(y, changed)`: float32 `x` steered by row `row` of the table; where `changed` is false `y` is to be left alone.

    `bank` is `(directions, n_directions, dim)`, `table` its columns in the order of `SteerTable`, the slots and
    how far rows are apart. A single direction is asked for before the row is summed: the two loads that it
    depends on are then over when the sums are.
    """
    direction, strength, low, high, rotate, preserve_norm, relative, slots, line, flag_line = table
    first = row * line
    only = direction_row(bank, tl.load(direction + first), at, fits) if SLOTS == 1 else x
    down, up = power_of_two(tl.max(tl.abs(x), axis=0))
    z = x * down
    norm = tl.sqrt(tl.sum(z * z, axis=0))
    unit = scale * tl.where(tl.load(relative + row * flag_line) != 0, norm, down)

    delta = tl.zeros_like(z)
    stay = unit * 0.0
    reach = tl.abs(stay)  # what no element of delta exceeds
    changed = row < 0
    for s in range(slots):
        k = tl.load(direction + first + s)
        if (k >= 0) & (k < bank[1]):
            v = only if SLOTS == 1 else direction_row(bank, k, at, fits)
            p = tl.sum(z * v, axis=0)
            b = added(
                p, unit, tl.load(strength + first + s), tl.load(low + first + s), tl.load(high + first + s)
            )
            angle = tl.load(rotate + first + s)
            if angle != 0:
                extra, towards = turn_row(z, v, p, norm, angle)
                stay += extra
                b += towards
            delta += b * v
            reach += tl.abs(b)
            changed = changed | (b != 0)
    changed = changed | (stay != 0)

    y = z
    if changed:
        a = 1.0 + stay
        y = a * z + delta
        down_y, up_y = power_of_two(tl.abs(a) * 2 + reach)
        preserve = tl.load(preserve_norm + row * flag_line)
        if preserve == 1:
            after = length(y, down_y, up_y)
            y *= tl.where(after > 0, norm / after, 1.0)
        elif preserve == 2:
            rest = orthogonal_part(z, bank, direction, first, slots, at, fits, SLOTS)
            inside = a * (z - rest) + delta
            shrink, g = keep_orthogonal(
                norm, length(inside, down_y, up_y), tl.sqrt(tl.sum(rest * rest, axis=0))
            )
            y = shrink * inside + g * rest
    return y * up, changed
