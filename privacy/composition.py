"""What a plan's releases amount to together, and its epsilon by three accountants.

Releases in which everyone takes part are merged into one Gaussian release, which is exact; equal sampled
releases are kept as counts and composed by power. The reference is the privacy loss distribution (PLD) of
``dp-accounting`` (Koskela and others 2020, cells by "connect the dots", Doroshenko and others 2022): an
upper bound, off by less than 1e-3 at the epsilons that one would publish.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import dp_accounting
from dp_accounting import NeighboringRelation, rdp
from dp_accounting.pld import privacy_loss_distribution as pld

from fedrecall.privacy.gaussian import gaussian_epsilon
from fedrecall.protocol.plan import Adjacency, Mechanism

FINE = 1e-4
COARSE = 1e-3
_RELATION = {
    "add_remove": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace_one": NeighboringRelation.REPLACE_ONE,
}
_RDP_ORDERS = [order for order in rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS if order >= 2]


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Everything released, the order forgotten.

    Attributes:
        mu_squared: of all releases in which everyone takes part; 0 for none.
        sampled: ((sample_rate, std / clip_norm, adjacency), steps) of each kind of Poisson-sampled release.
    """

    mu_squared: float
    sampled: tuple[tuple[tuple[float, float, Adjacency], int], ...]


def shift_of(adjacency: Adjacency) -> float:
    """Return how far a neighbour moves a clipped sum, in clips: ``add_remove`` 1, ``replace_one`` 2."""
    return 2.0 if adjacency == "replace_one" else 1.0


def compose(releases: Iterable[tuple[Mechanism, Adjacency]], *, amplified: bool) -> Composition:
    """Merge noised mechanisms under the adjacency given for each; ``amplified`` credits Poisson coins."""
    mu_squared = 0.0
    sampled: Counter[tuple[float, float, Adjacency]] = Counter()
    for mechanism, adjacency in releases:
        if mechanism.steps == 0:
            continue
        if amplified and mechanism.sample_rate < 1:
            sampled[(mechanism.sample_rate, mechanism.noise_multiplier, adjacency)] += mechanism.steps
        else:
            mu_squared += mechanism.steps * (shift_of(adjacency) / mechanism.noise_multiplier) ** 2
    return Composition(mu_squared=mu_squared, sampled=tuple(sorted(sampled.items())))


def pld_epsilon(composition: Composition, delta: float, interval: float = FINE) -> float:
    """Return an upper bound of epsilon at ``delta``, infinite where delta is below the PLD's lost tails.

    ``interval`` is the width of a cell of privacy loss; wider ones are faster and looser (1e-3: by less
    than 1e-3 for plans worth publishing). Cells are widened further where little noise would ask for over
    a million.
    """
    cell = max(interval, _width(composition) * interval / 100)
    total = pld.identity(value_discretization_interval=cell)
    if composition.mu_squared > 0:
        std = 1 / math.sqrt(composition.mu_squared)
        total = total.compose(pld.from_gaussian_mechanism(std, value_discretization_interval=cell))
    for (rate, sigma, adjacency), steps in composition.sampled:
        # REPLACE_ONE takes sigma = std / clip_norm and doubles the shift by itself.
        one = pld.from_gaussian_mechanism(
            sigma,
            sampling_prob=rate,
            value_discretization_interval=cell,
            neighboring_relation=_RELATION[adjacency],
        )
        total = total.compose(one.self_compose(steps))
    return float(total.get_epsilon_for_delta(delta))


def closed_form_epsilon(composition: Composition, delta: float) -> float | None:
    """Return the exact epsilon at ``delta``, or ``None`` where anything is sampled."""
    return None if composition.sampled else gaussian_epsilon(math.sqrt(composition.mu_squared), delta)


def rdp_epsilon(composition: Composition, delta: float) -> float | None:
    """Return the looser bound by Renyi divergences, or ``None`` for sampled ``replace_one``."""
    if any(adjacency == "replace_one" for (_, _, adjacency), _ in composition.sampled):
        return None
    accountant = rdp.RdpAccountant(_RDP_ORDERS)
    if composition.mu_squared > 0:
        accountant.compose(dp_accounting.GaussianDpEvent(1 / math.sqrt(composition.mu_squared)))
    for (rate, sigma, _), steps in composition.sampled:
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    return float(accountant.get_epsilon(delta))


def _width(composition: Composition) -> float:
    """Estimate the span of the privacy loss; the sampled mu (Bu and others 2020) serves this alone."""
    mu_squared = composition.mu_squared
    for (rate, sigma, adjacency), steps in composition.sampled:
        one = (shift_of(adjacency) / sigma) ** 2
        mu_squared += steps * min(one, rate**2 * math.expm1(min(one, 700.0)))
    return mu_squared / 2 + 10 * math.sqrt(mu_squared)
