"""The Gaussian mechanism in closed form: mu against (epsilon, delta).

A release that moves by ``s`` between neighbours under noise of standard deviation ``sigma`` is a test of
N(0, 1) against N(mu, 1) with mu = s / sigma, and releases compose as mu^2 = mu_1^2 + mu_2^2 + ... exactly
(Dong, Roth and Su 2022, "Gaussian Differential Privacy", section 3.2). The relation to (epsilon, delta) is
theorem 8 of Balle and Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy"::

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)
"""

import math
from collections.abc import Callable

from scipy.special import log_ndtr

from fedrecall.protocol.errors import PlanError

_XTOL = 1e-13
_HUGE = 1e8


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the smallest delta of a mu-Gaussian release at ``epsilon``; both at least 0, else PlanError.

    Worked out from logarithms, so that deltas far below 1e-16 keep their relative precision.
    """
    _require(math.isfinite(mu) and mu >= 0, "mu", mu, "finite and at least 0")
    _require(math.isfinite(epsilon) and epsilon >= 0, "epsilon", epsilon, "finite and at least 0")
    if mu == 0:
        return 0.0
    upper = float(log_ndtr(mu / 2 - epsilon / mu))
    lower = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    return math.exp(upper) * -math.expm1(min(0.0, lower - upper))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon of a mu-Gaussian release at ``delta`` (0 < delta < 1, else PlanError)."""
    _require(0 < delta < 1, "delta", delta, "between 0 and 1")
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    bound = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))  # Phi(-z) <= exp(-z^2 / 2)
    if mu > _HUGE:
        return bound  # no less than it, and nobody would tell the difference
    return _root(lambda e: gaussian_delta(mu, e) - delta, bound)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu whose release is (epsilon, delta)-private; epsilon above 0, delta in (0, 1).

    Raises PlanError otherwise. ``gaussian_epsilon(gaussian_mu(e, d), d)`` is ``e`` to about 1e-10.
    """
    _require(math.isfinite(epsilon) and epsilon > 0, "epsilon", epsilon, "finite and above 0")
    _require(0 < delta < 1, "delta", delta, "between 0 and 1")
    high = 1.0
    while gaussian_delta(high, epsilon) < delta:
        high *= 2
    return _root(lambda m: gaussian_delta(m, epsilon) - delta, high)


def _root(gap: Callable[[float], float], high: float) -> float:
    """Return where ``gap`` crosses 0 between 0 and ``high``."""
    from scipy.optimize import brentq  # half a second to load, and most that import this file only ask for deltas

    return float(brentq(gap, 0.0, high, xtol=_XTOL, rtol=_XTOL))


def _require(ok: bool, name: str, value: float, bound: str) -> None:
    if not ok:
        raise PlanError(f"{name} is {value}: choose it {bound}")
