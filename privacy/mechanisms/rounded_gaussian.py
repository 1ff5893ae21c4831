"""A real-valued Gaussian added and rounded to whole numbers, exactly: no tail is cut and no value is out of reach.

What is returned has the distribution of round(x + N(0, s^2)) for a real-valued N. So it is post-processing of the
Gaussian mechanism, with the mechanism's own epsilon and delta: nothing of the arithmetic is left over to be added to
delta, and the values that can come out are all whole numbers, whatever x is. (Noise of finitely many bits does not do
that: beyond some deviations it hits but a few of the numbers, and which ones tells x; Mironov 2012.)

A draw is a point u of (0, 1/2) of which the first 63 bits are known, and a sign. Its normal deviate is worked out in
double precision with a bound on all that may be wrong with it: the bits not drawn yet, the rounding, the inverse
distribution function. Where both ends of the bound round to one number, that number is exact, whatever the further
bits are. Else (a few in a million) more bits are drawn and the deviate is worked out again in as many digits as they
need: a filter before exact arithmetic, as in exact geometric predicates (Shewchuk 1997).
"""

from collections.abc import Callable
from functools import partial
from itertools import count

import mpmath
import numpy as np
from jaxtyping import Float64, UInt64
from scipy.special import ndtri

from fedrecall.protocol.errors import PlanError

More = Callable[[int, int], int]
"""Further secret uniform words of 64 bits: (draw, number of the word) in, the same word every time out."""

_TAIL = 2.0**-19
"""Below it the bits that are not drawn yet are too large a part of u: such draws (one in 260,000) go the exact way."""

_DEVIATE = 2.0**-40
"""Bound on the error of a deviate in double precision, for u from ``_TAIL`` on: the deviate is 4.7 at most there.

With z = -inverse(u) the density is at least u max(z, 0.4) (Mills' ratio), so that an error du of u, of which at least
45 bits are known and 52 are kept, moves z by at most 2 du / (0.4 u) < 2^-42. ``ndtri`` itself is taken to be right to a
relative 2^-44, a hundred times the largest error that is known of it.
"""

_ROUNDING = 2.0**-50
_WORD = 64
_SPARE = 96  # bits of precision beyond those that were drawn


def add_rounded(
    values: Float64[np.ndarray, "numbers"], std: float, words: UInt64[np.ndarray, "numbers"], more: More
) -> Float64[np.ndarray, "numbers"]:
    """Return round(values + N(0, std^2)), an independent draw for each value, ties having no probability.

    Args:
        values: finite, at most 2^80.
        std: at least 2^-10 and at most 2^60.
        words: a secret uniform word for each value.
        more: further words of a draw, numbered from 0, for the few draws that need them.

    Raises:
        PlanError: ``std`` is out of bounds.
    """
    if not 2.0**-10 <= std <= 2.0**60:
        raise PlanError(f"the noise's std is {std} grid units: choose the grid so that it is 2^-10 to 2^60")
    whole = np.rint(values)
    rest = values - whole  # exact
    half = ((words >> np.uint64(1)).astype(np.float64) + 0.5) * 2.0**-_WORD
    moved: Float64[np.ndarray, "numbers"] = ndtri(half)
    moved *= -std
    moved.view(np.uint64)[...] ^= words << np.uint64(63)  # the last bit is the sign
    moved += rest
    nearest: Float64[np.ndarray, "numbers"] = np.rint(moved)
    # How far the next number is that would round elsewhere, and how far off the sum may be.
    room = 0.5 - np.abs(moved - nearest)
    error = std * _DEVIATE + (6.0 * std + 1.0) * _ROUNDING
    for draw in np.flatnonzero((room <= error) | (half < _TAIL)).tolist():
        nearest[draw] = _exactly(float(rest[draw]), std, int(words[draw]), partial(more, draw))
    nearest += whole
    nearest += 0.0  # the sign of a zero would tell that of the value
    return nearest


def _exactly(rest: float, std: float, word: int, more: Callable[[int], int]) -> float:
    """Return round(rest + std z) for the draw that begins with ``word``, drawing as many words as it takes."""
    sign = -1 if word & 1 else 1
    known, bits = word >> 1, _WORD
    for number in count():
        known, bits = (known << _WORD) | more(number), bits + _WORD
        with mpmath.workprec(bits + _SPARE):
            ends = [_inverse(mpmath.mpf(known + side) / mpmath.mpf(2) ** bits) for side in (0, 1)]
            sums = [mpmath.mpf(rest) + sign * mpmath.mpf(std) * z for z in ends]
            # Wider by far than what the last digits of the inverse may be wrong by.
            slack = mpmath.mpf(2) ** -(bits // 2 + _SPARE // 2)
            low, high = min(sums) - slack, max(sums) + slack
            if mpmath.isfinite(low) and mpmath.isfinite(high):
                first, last = mpmath.floor(low + 0.5), mpmath.floor(high + 0.5)
                if first == last:
                    return float(first)
    raise AssertionError("counting has no end")


def _inverse(u: mpmath.mpf) -> mpmath.mpf:
    """Return z with P[N > z] = u, for u in [0, 1/2], in the working precision (Newton's method)."""
    if u == 0:
        return mpmath.inf
    root = mpmath.sqrt(2)
    z = mpmath.sqrt(-2 * mpmath.log(u)) if u < mpmath.mpf(2) ** -1000 else -mpmath.mpf(float(ndtri(float(u))))
    for _ in range(200):
        step = (mpmath.erfc(z / root) / 2 - u) * mpmath.sqrt(2 * mpmath.pi) * mpmath.exp(z * z / 2)
        z += step
        if abs(step) <= abs(z) * mpmath.eps * 16 or abs(step) < mpmath.eps:
            return z
    raise ArithmeticError(f"the inverse of {u} was not found")
