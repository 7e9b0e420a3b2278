"""The scalars of a row update: what one slot adds, a turn, the share of a row in a span, a norm kept.

Written for scalars of any precision: float32 where the row is in registers and its norms are taken
from the vectors themselves, float64 where long rows leave nothing but their sums. The definitions are
those of `emosteer.ops.SteerTable`.
"""

import triton
import triton.language as tl

# A row this close to a direction, relative to its length, has no plane to turn in and no orthogonal part.
PARALLEL = tl.constexpr(1e-6)
# Directions that repeat others make their Gram matrix singular; below this a pivot counts as 0.
GRAM_TOLERANCE = tl.constexpr(1e-6)


@triton.jit
def bound(limit, unit):
    """`limit·unit`, where an infinite limit stays infinite at a unit of 0."""
    return tl.where(tl.abs(limit) == float("inf"), limit, limit * unit)


@triton.jit
def added(p, unit, strength, low, high):
    """What a slot adds along its direction: a strength, and what brings the projection into its bounds.

    Comparisons, since a minimum would hide a NaN projection.
    """
    low = bound(low, unit)
    high = bound(high, unit)
    clipped = tl.where(p < low, low, tl.where(p > high, high, p))
    return strength * unit + (clipped - p)


@triton.jit
def sine_and_cosine(angle):
    """For an angle in [−π, π], to 1e-9: Taylor series of the half angle, then twice it.

    The library functions take any angle, and keep an array in local memory for the large ones.
    """
    h = angle * 0.5
    q = h * h
    sine = q * (1 / 6227020800) - 1 / 39916800
    sine = sine * q + 1 / 362880
    sine = sine * q - 1 / 5040
    sine = sine * q + 1 / 120
    sine = sine * q - 1 / 6
    sine = sine * q * h + h
    cosine = q * (-1 / 87178291200) + 1 / 479001600
    cosine = cosine * q - 1 / 3628800
    cosine = cosine * q + 1 / 40320
    cosine = cosine * q - 1 / 720
    cosine = cosine * q + 1 / 24
    cosine = cosine * q - 0.5
    cosine = cosine * q + 1.0
    return 2 * sine * cosine, 1 - 2 * sine * sine


@triton.jit
def turn(along, across, norm, length, angle):
    """`(stay, towards)` with `R x − x = stay·x + towards·v`: `x` turned by `angle` towards `v`, stopping at `±v`.

    `x = (along/length)·v + across·w` with `w` a unit vector orthogonal to `v` and `length = ‖v‖`.
    Beyond the stop the sine of the new angle is negative, whichever way it went.
    """
    plane = across > norm * PARALLEL
    across = tl.where(plane, across, 1.0)
    size = tl.where(plane, norm, 1.0)
    sine, cosine = sine_and_cosine(angle)
    after_sine = (across * cosine - along * sine) / size
    after_cosine = (along * cosine + across * sine) / size
    stopped = after_sine < 0
    after_sine = tl.where(stopped, 0.0, after_sine)
    after_cosine = tl.where(stopped, tl.where(angle > 0, 1.0, -1.0), after_cosine)
    ratio = after_sine * norm / across
    stay = tl.where(plane, ratio - 1.0, 0.0)
    towards = tl.where(plane, (after_cosine * norm - ratio * along) / length, 0.0)
    return stay, towards


@triton.jit
def inverse_gram(gram, slots, SLOTS: tl.constexpr):
    """The inverse of a Gram matrix on a largest set of independent directions, 0 elsewhere.

    The sweep operator (Goodnight, 1979) with the largest remaining pivot first: sweeping k turns
    `A_kk` into `−1/A_kk` and leaves the Schur complement in what is not yet swept.
    """
    i = tl.arange(0, SLOTS)
    swept = i < 0
    for _ in range(slots):
        rest = tl.where(swept, 0.0, tl.sum(tl.where(i[:, None] == i[None, :], gram, 0.0), axis=1))
        best = tl.max(rest, axis=0)
        pivot = i == tl.argmax(rest, axis=0)
        if best > GRAM_TOLERANCE:
            column = tl.sum(tl.where(pivot[None, :], gram, 0.0), axis=1)
            line = tl.sum(tl.where(pivot[:, None], gram, 0.0), axis=0)
            rows_pivot = pivot[:, None]
            columns_pivot = pivot[None, :]
            gram = tl.where(
                rows_pivot & columns_pivot,
                -1.0 / best,
                tl.where(
                    rows_pivot,
                    line[None, :] / best,
                    tl.where(
                        columns_pivot, column[:, None] / best, gram - column[:, None] * line[None, :] / best
                    ),
                ),
            )
            swept = swept | pivot
    return tl.where(swept[:, None] & swept[None, :], -gram, 0.0)


@triton.jit
def keep_orthogonal(norm, inside, outside):
    """`(shrink, g)` with `‖shrink·inside + g·outside‖ = norm`: the inside stays unless it alone is too long."""
    shrink = tl.where(inside > norm, norm / tl.where(inside > norm, inside, 1.0), 1.0)
    room = tl.sqrt(tl.maximum((norm - inside) * (norm + inside), 0.0))
    something = outside > norm * PARALLEL
    return shrink, tl.where(something, room / tl.where(something, outside, 1.0), 0.0)
