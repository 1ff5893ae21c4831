"""Contributions as whole numbers, which is what secure aggregation adds: rounded inside their bound, noised in shares.

All devices use one public step, since sums of different steps mean nothing. Rounding is deterministic and never leaves
the bound, so that the sensitivity is what it was: one device moves the sum by at most ``clip_norm / step`` in L2.
(Rounding at random is unbiased and leaves the bound; Kairouz and others 2021, section 4.1, pay for that.)
"""

import math

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import ndtri

from fedrecall.privacy.mechanisms.noise import WholeNoise
from fedrecall.protocol.errors import PlanError, UpdateError

LEAST_SHARE = 2.0
"""Standard deviation of a share of noise at least, in steps: below it sums of shares are no Gaussian any more."""
_LARGEST = 2.0**50


def as_whole_numbers(
    values: Float64[np.ndarray, "*shape"], step: float, clip_norm: float
) -> Int64[np.ndarray, "*shape"]:
    """Return ``values / step``, rounded to whole numbers of an L2 norm of at most ``clip_norm / step``.

    Each number goes to the nearest, and where that leaves the bound some go towards zero instead: those that gain least
    by the nearest first. Towards zero everything fits, if ``values`` do.

    Args:
        values: of norm at most ``clip_norm`` to within float64.
        step: public, above 0.
        clip_norm: above 0, less than 2^50 steps.

    Raises:
        PlanError: ``step`` or ``clip_norm`` is out of bounds.
        UpdateError: the values are not finite, or beyond the bound by more than rounding explains.
    """
    if not (0 < step < math.inf and 0 < clip_norm < step * _LARGEST):
        raise PlanError(f"step is {step} and clip_norm {clip_norm}: choose both above 0, and less than 2^50 steps")
    scaled = np.asarray(values, dtype=np.float64).reshape(-1) / step
    most = clip_norm / step
    length = float(np.linalg.norm(scaled))
    if not length <= most * (1 + 1e-9):
        raise UpdateError(f"the contribution's norm is {length * step}, beyond {clip_norm}: clip it first")
    nearest, inward = np.rint(scaled), np.trunc(scaled)
    whole = nearest.astype(np.int64)
    excess = _square(whole) - int(most * most)
    if excess > 0:
        outward = np.flatnonzero(np.abs(nearest) > np.abs(inward))
        # A half is a toss-up: what is nearest to one loses least by going the other way.
        gain = np.abs(scaled[outward]) - np.abs(inward[outward])
        order = outward[np.argsort(gain, kind="stable")]
        saved = np.cumsum(2 * np.abs(whole[order]) - 1)
        enough = int(np.searchsorted(saved, excess)) + 1
        whole[order[:enough]] = inward[order[:enough]].astype(np.int64)
        whole = _inside(whole, most)
    return whole.reshape(np.shape(values))


def _inside(whole: Int64[np.ndarray, " n"], most: float) -> Int64[np.ndarray, " n"]:
    """Take one off the largest numbers while rounding of the norm itself leaves the sum of squares above its bound."""
    bound = int(most * most)
    while _square(whole) > bound:
        at = int(np.argmax(np.abs(whole)))
        whole[at] -= np.sign(whole[at])
    return whole


def _square(whole: Int64[np.ndarray, " n"]) -> int:
    """Return the sum of squares, exactly."""
    if whole.size and int(np.abs(whole).max()) > 1 << 20:
        return sum(int(one) * int(one) for one in whole[whole != 0])
    return int(np.sum(whole * whole))


def share_std(total_std: float, honest: int) -> float:
    """Return the standard deviation of one device's share of a noise that ``honest`` devices add between them.

    Args:
        total_std: that the sum must have, in steps.
        honest: fewest devices that add noise which nobody else knows: survivors at least, minus colluders at most.

    Raises:
        PlanError: there are none, or a share is below ``LEAST_SHARE``, or absurdly large.
    """
    if type(honest) is not int or honest < 1:
        raise PlanError(f"honest is {honest}: at least one survivor must not collude, or nobody's noise hides anything")
    share = total_std / math.sqrt(honest)
    if not LEAST_SHARE <= share < _LARGEST:
        raise PlanError(f"a share of noise is {share:.3g} steps: choose a step so that it is at least {LEAST_SHARE:g}")
    return share


def add_share(whole: Int64[np.ndarray, "*shape"], std: float, noise: WholeNoise) -> Int64[np.ndarray, "*shape"]:
    """Return whole numbers plus a Gaussian of deviation ``std``, in steps, rounded to whole numbers exactly."""
    return noise.whole(whole.astype(np.float64), std).astype(np.int64)


def bits_for(largest: float, std: float, numbers: int, chance: float = 1e-6) -> int:
    """Return the bits of a modulus in which a sum with noise wraps nowhere, but for a stated chance.

    Args:
        largest: that a number of the sum without noise is in size, in steps, by a public bound.
        std: of the noise of the sum, in steps.
        numbers: of the sum.
        chance: that any of them wraps. What wraps is wrong, and tells no more than what does not.

    Raises:
        PlanError: more than 32 bits are needed, or an argument is not above 0.
    """
    if not (largest >= 0 and std >= 0 and numbers >= 1 and 0 < chance < 1):
        raise PlanError(f"largest {largest}, std {std}, numbers {numbers}, chance {chance}: choose them above 0")
    reach = largest + 1 - float(ndtri(chance / (2 * numbers))) * std
    bits = max(2, math.ceil(math.log2(reach)) + 1)
    if bits > 32:
        raise PlanError(f"{bits} bits a number are needed: choose a larger step, at most 32 bits are sent")
    return bits
