"""Noise that several devices add in shares, each rounded to whole numbers: what it promises, exactly.

Let each of h devices add round(N(0, s^2)) to whole numbers, and let only the sum be seen. Then the sum is a function of
z + N(0, h s^2), z the sum of the numbers, but for a gap that is bounded here:

- One share has the probabilities p_1(n) = f_1(n), f_1 the density of N(0, s^2) plus a uniform on (-1/2, 1/2).
- The density f_h of N(0, h s^2) plus h such uniforms is, at whole numbers n, q_h(n) = E[B_h(n - N(0, h s^2))], B_h the
  density of h uniforms: a cardinal B-spline of order h, whose shifts by whole numbers add up to 1 everywhere (de Boor
  1978). So q_h is a distribution, and is the Gaussian rounded at random with these weights: for shifts by whole
  numbers, post-processing of the Gaussian mechanism, with no loss at all.
- The sum's distribution p_h is the h-fold convolution over whole numbers of p_1. By Poisson's summation formula its
  characteristic function is (sum_k psi(t + 2 pi k))^h, that of q_h is sum_k psi(t + 2 pi k)^h, psi that of f_1: they
  differ by mixed terms alone, which are of the order of exp(-2 pi^2 s^2 (1 - 1/h)).

``gap`` bounds the total variation between p_h and q_h. With d numbers, whatever is seen is within d gaps of the exact
mechanism under either neighbour: delta grows by (1 + exp(epsilon)) d gap. Compare Kairouz, Liu and Steinke 2021, whose
gap (theorem 9) is of the same order, for shares from the discrete Gaussian.
"""

import math

import numpy as np

from fedrecall.protocol.errors import PlanError

_LEAST = 0.5
_POINTS = 4001
_DEVIATIONS = 40.0
"""Of the sum: beyond it both distributions have less than 1e-340."""


def gap(std: float, shares: int) -> float:
    """Return a bound on the total variation, in one number, between a sum of rounded shares and the exact mechanism.

    Args:
        std: of a share, in steps, at least 0.5.
        shares: that are added, from 1.

    Raises:
        PlanError: an argument is out of bounds.
    """
    if not _LEAST <= std < math.inf or type(shares) is not int or shares < 1:
        raise PlanError(f"std is {std} and shares {shares}: choose a std of at least {_LEAST} steps, and shares from 1")
    if shares == 1:
        return 0.0
    t = np.linspace(0.0, math.pi, _POINTS)
    # |psi(t)| and all its other periods together, for t in [0, pi] and a std of at least 0.5.
    own = -(std**2) * t**2 / 2
    others = math.log(2.1) - std**2 * (2 * math.pi - t) ** 2 / 2
    mixed = math.log(shares) + others + (shares - 1) * np.logaddexp(own, others)
    alone = math.log(2.1) - shares * std**2 * (2 * math.pi - t) ** 2 / 2
    # Between two points an exponent moves by less than this.
    slack = std**2 * math.pi * (shares + 1) * (t[1] - t[0])
    largest = float(np.logaddexp(mixed, alone).max()) + slack
    # Every probability is off by at most the mean of the difference; as many as matter are counted.
    reach = shares / 2 + _DEVIATIONS * math.sqrt(shares) * std
    return min(1.0, math.exp(min(0.0, largest + math.log(reach + 0.5))))


def delta_of_gap(epsilon: float, numbers: int, std: float, shares: int, releases: int = 1) -> float:
    """Return what delta grows by, at ``epsilon``, because shares are rounded: over all numbers of all releases."""
    return min(1.0, (1.0 + math.exp(min(700.0, epsilon))) * numbers * releases * gap(std, shares))
