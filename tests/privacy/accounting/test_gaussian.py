import math

import mpmath
import pytest

from fedrecall.privacy.accounting.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu
from fedrecall.protocol.errors import PlanError


def mp_delta(mu: float, epsilon: float) -> mpmath.mpf:
    """Theorem 8 of Balle and Wang 2018 with 60 digits."""
    with mpmath.workdps(60):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        return mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)


@pytest.mark.parametrize("mu", [1e-3, 0.05, 0.268, 1.0, 1.666, 4.35, 12.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 1.0, 4.377, 8.0, 60.0])
def test_delta_agrees_with_mpmath(mu: float, epsilon: float) -> None:
    exact = mp_delta(mu, epsilon)
    if exact > mpmath.mpf(10) ** -290:
        assert gaussian_delta(mu, epsilon) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize("mu", [0.01, 0.268, 1.0, 4.35, 40.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-6, 1e-12])
def test_epsilon_is_the_root_of_the_exact_delta(mu: float, delta: float) -> None:
    epsilon = gaussian_epsilon(mu, delta)
    assert float(mp_delta(mu, epsilon)) == pytest.approx(delta, rel=1e-6) or epsilon == 0.0
    assert mp_delta(mu, epsilon + 1e-6) < delta


def test_the_audit_literature_figure() -> None:
    assert gaussian_epsilon(1.0, 1e-5) == pytest.approx(4.377, abs=1e-3)


@pytest.mark.parametrize(("epsilon", "mu"), [(8, 1.666), (4, 0.925), (2, 0.502), (1, 0.268)])
def test_mu_anchors(epsilon: float, mu: float) -> None:
    assert gaussian_mu(epsilon, 1e-5) == pytest.approx(mu, abs=5e-4)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("delta", [0.1, 1e-5, 1e-10])
def test_mu_and_epsilon_are_inverses(epsilon: float, delta: float) -> None:
    assert gaussian_epsilon(gaussian_mu(epsilon, delta), delta) == pytest.approx(epsilon, abs=1e-8)


def test_no_signal_costs_nothing() -> None:
    assert gaussian_delta(0.0, 0.0) == 0.0
    assert gaussian_epsilon(0.0, 1e-5) == 0.0
    assert gaussian_epsilon(1e-9, 1e-5) == 0.0


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_epsilon_is_refused(epsilon: float) -> None:
    with pytest.raises(PlanError, match=r"epsilon is .*: choose it"):
        gaussian_mu(epsilon, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -0.1, math.nan])
def test_an_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(PlanError, match="delta is"):
        gaussian_epsilon(1.0, delta)
    with pytest.raises(PlanError, match="delta is"):
        gaussian_mu(1.0, delta)


@pytest.mark.parametrize("mu", [1e7, 1e8, 1.1e8, 1e100, 1e150])
def test_a_mu_that_bounds_nothing_is_still_a_number(mu: float) -> None:
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(mu * mu / 2, rel=1e-6)
