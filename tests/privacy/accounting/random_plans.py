"""Random plans, and what each accountant says of them: for the tests and for ``benchmarks/accountants.py``."""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from fedrecall.privacy.accounting.accounting import cross_check
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.protocol.plan import Mechanism, Plan

SEED = 20
PRV_ERROR = 0.01


@dataclass(frozen=True, kw_only=True)
class Side:
    """One plan and its epsilons; ``prv`` is (lower, estimate, upper), ``None`` with ``why`` where it has no answer."""

    plan: Plan
    pld: float
    rdp: float | None
    closed_form: float | None
    prv: tuple[float, float, float] | None
    why: str


def random_plans(count: int) -> list[Plan]:
    """Return the first ``count`` plans of one fixed sequence: up to three mechanisms, epsilons of about 0.2 to 12."""
    rng = np.random.default_rng(SEED)
    plans = []
    for number in range(count):
        unit = "interaction" if number % 4 == 3 else "user"
        # A sampled plan has one relation; unit interaction may mix events that are samples with events in blocks.
        relation = "replace_one" if number % 8 == 6 else "add_remove"
        delta = float(rng.choice([1e-5, 1e-6]))
        mu_squared = gaussian_mu(math.exp(rng.uniform(math.log(0.2), math.log(12.0))), delta) ** 2
        parts = rng.dirichlet(np.ones(rng.integers(1, 4)))
        mechanisms = []
        for i, part in enumerate(parts):
            adjacency = str(rng.choice(["add_remove", "replace_one"])) if unit == "interaction" else relation
            steps = round(math.exp(rng.uniform(0.0, math.log(300.0))))
            rate = math.exp(rng.uniform(math.log(0.01), math.log(0.6)))
            sampled = unit == "user" and relation == "add_remove" and rng.random() < 0.7
            mu = math.sqrt(max(mu_squared * part, 1e-3))
            shift = 2.0 if adjacency == "replace_one" else 1.0
            sigma = shift * math.sqrt(steps) / mu
            if sampled:  # as the central limit would have it
                sigma = max(0.45, 1 / math.sqrt(math.log1p(mu**2 / (steps * rate**2))))
            mechanisms.append(
                Mechanism(
                    name=f"m{i}",
                    sampling="poisson" if sampled else "everyone",
                    sample_rate=rate if sampled else 1.0,
                    noise_multiplier=sigma,
                    clip_norm=1.0,
                    steps=steps,
                    adjacency=adjacency,  # type: ignore[arg-type]
                )
            )
        trust = "local" if unit == "interaction" and number % 8 == 3 else "central"
        plans.append(
            Plan(unit=unit, trust=trust, delta=delta, devices=6040, mechanisms=tuple(mechanisms))  # type: ignore[arg-type]
        )
    return plans


def measure(plan: Plan) -> Side:
    """Account ``plan`` four ways."""
    checks = cross_check(plan)
    assert checks["pld"] is not None
    try:
        bounds, why = prv(plan), ""
    except (RuntimeError, ValueError) as error:
        bounds, why = None, str(error)
    return Side(plan=plan, pld=checks["pld"], rdp=checks["rdp"], closed_form=checks["closed_form"], prv=bounds, why=why)


def prv(plan: Plan) -> tuple[float, float, float]:
    """Return Opacus' (lower, estimate, upper) epsilon by numerical composition (Gopi, Lee and Wutschitz 2021).

    It knows the sum moved by one clip alone, so a replacement is given to it as half the noise, which is exact
    where nothing is sampled. It takes no rate of exactly 1 (log 0): the largest number below 1 stands for it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant
    history = []
    for m in plan.mechanisms:
        assert m.adjacency == "add_remove" or m.sampling == "everyone"
        sigma = m.noise_multiplier / (2.0 if m.adjacency == "replace_one" else 1.0)
        history.append((sigma, min(m.sample_rate, math.nextafter(1.0, 0.0)), m.steps))
    accountant = PRVAccountant()
    accountant.history = history
    error = plan.delta / 1000
    with warnings.catch_warnings():
        # Its RDP, which bounds the tails, warns that it lacks orders.
        warnings.filterwarnings("ignore", message="Optimal order is the")
        # Of a Poisson sample the loss has a least value, below which its density takes the log of nothing.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="opacus")
        found = accountant._get_dprv(eps_error=PRV_ERROR, delta_error=error)
        return found.compute_epsilon(plan.delta, error, PRV_ERROR)
