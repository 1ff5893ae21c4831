"""What a plan's releases amount to together, and its epsilon by three accountants.

Releases without amplification are merged into one Gaussian release, which is exact; equal sampled releases
are kept as counts and composed by power. The reference is the privacy loss distribution (PLD) of
``dp-accounting`` (Koskela and others 2020, cells by "connect the dots", Doroshenko and others 2022): an
upper bound, off by less than 1e-3 at the epsilons that one would publish. It has no event for fixed-size
cohorts: those are accounted by Renyi divergences (Wang, Balle and Kasiviswanathan 2019, theorem 27), which
is looser.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.mechanisms.correlated import coefficients, sensitivity
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Adjacency, Mechanism

PLD = "PLD (dp-accounting)"
RDP = "RDP (dp-accounting); its PLD has no event for fixed-size cohorts"
FINE = 1e-4
COARSE = 1e-3
_RELATION: dict[Adjacency, str] = {
    "add_remove": "ADD_OR_REMOVE_ONE",
    "replace_one": "REPLACE_ONE",
    "zero_out": "ADD_OR_REMOVE_ONE",  # the same pair of distributions
}
"""Names of ``dp_accounting.NeighboringRelation``; the library takes two seconds to load, so that functions load it."""

_LARGEST = 1e6
_PARTS = 2**50  # the event wants whole numbers and reads their ratio alone


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Everything released, the order forgotten.

    Attributes:
        mu_squared: of all releases without amplification; 0 for none.
        sampled: ((sample_rate, std / clip_norm, adjacency), steps) of each kind of Poisson-sampled release.
        subsets: ((sample_rate, std / clip_norm), steps) of each kind of release of a secret fixed-size cohort;
            neighbours replace one device.
    """

    mu_squared: float
    sampled: tuple[tuple[tuple[float, float, Adjacency], int], ...] = ()
    subsets: tuple[tuple[tuple[float, float], int], ...] = ()


def shift_of(adjacency: Adjacency) -> float:
    """Return how far a neighbour moves a clipped sum, in clips: ``replace_one`` 2, the others 1."""
    return 2.0 if adjacency == "replace_one" else 1.0


def compose(releases: Iterable[tuple[Mechanism, Adjacency]], *, amplified: bool) -> Composition:
    """Merge noised mechanisms under the adjacency given for each; ``amplified`` credits secret sampling."""
    mu_squared = 0.0
    sampled: Counter[tuple[float, float, Adjacency]] = Counter()
    subsets: Counter[tuple[float, float]] = Counter()
    for mechanism, adjacency in releases:
        if mechanism.steps == 0:
            continue
        if amplified and mechanism.sampling == "poisson" and mechanism.sample_rate < 1:
            sampled[(mechanism.sample_rate, mechanism.noise_multiplier, adjacency)] += mechanism.steps
        elif amplified and mechanism.sampling == "fixed_size" and mechanism.sample_rate < 1:
            subsets[(mechanism.sample_rate, mechanism.noise_multiplier)] += mechanism.steps
        else:
            moved = shift_of(adjacency) * total_sensitivity(mechanism)
            mu_squared += (moved / mechanism.noise_multiplier) ** 2
    return Composition(
        mu_squared=mu_squared, sampled=tuple(sorted(sampled.items())), subsets=tuple(sorted(subsets.items()))
    )


def total_sensitivity(mechanism: Mechanism) -> float:
    """Return the L2 norm that one device, at norm 1 a round, reaches over all releases against noise of std 1.

    sqrt(steps) where it may take part in all of them, that of the correlated noise's matrix under ``limited``.
    """
    if mechanism.participations is None or mechanism.min_gap is None:
        return math.sqrt(mechanism.steps)
    return sensitivity(coefficients(mechanism.bands), mechanism.steps, mechanism.participations, mechanism.min_gap)


def single_sensitivity(mechanism: Mechanism) -> float:
    """Return the share of one participation in ``total_sensitivity``: n of them reach at most sqrt(n) as much.

    1 without correlated noise. With it, participations add up to more than each alone (the matrix is nowhere
    negative), and the last ones to less (the horizon cuts them), so that it is the largest mean over all n.
    """
    if mechanism.participations is None or mechanism.min_gap is None or not mechanism.steps:
        return 1.0
    matrix, most = coefficients(mechanism.bands), min(mechanism.participations, mechanism.steps)
    return max(sensitivity(matrix, mechanism.steps, n, mechanism.min_gap) / math.sqrt(n) for n in range(1, most + 1))


@lru_cache(maxsize=256)  # a search for noise asks for the same plans again, and a PLD takes half a second
def epsilon_of(composition: Composition, delta: float, interval: float = FINE) -> tuple[float, str]:
    """Return an upper bound of epsilon at ``delta`` and the accountant that gave it: PLD wherever it can."""
    if not composition.subsets:
        return pld_epsilon(composition, delta, interval), PLD
    epsilon = rdp_epsilon(composition, delta)
    if epsilon is None:
        raise PlanError("fixed-size cohorts beside Poisson-sampled ones have no accountant: use one of them")
    return epsilon, RDP


def pld_epsilon(composition: Composition, delta: float, interval: float = FINE) -> float:
    """Return an upper bound of epsilon at ``delta`` without subsets; infinite below the PLD's lost tails.

    ``interval`` is the width of a cell of privacy loss; wider ones are faster and looser (1e-3: by less
    than 1e-3 for plans worth publishing). Cells are widened further where little noise would ask for over
    a million.
    """
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import privacy_loss_distribution as pld

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
            neighboring_relation=NeighboringRelation[_RELATION[adjacency]],
        )
        total = total.compose(one.self_compose(steps))
    return float(total.get_epsilon_for_delta(delta))


def closed_form_epsilon(composition: Composition, delta: float) -> float | None:
    """Return the exact epsilon at ``delta``, or ``None`` where anything is amplified."""
    amplified = composition.sampled or composition.subsets
    return None if amplified else gaussian_epsilon(math.sqrt(composition.mu_squared), delta)


def rdp_epsilon(composition: Composition, delta: float) -> float | None:
    """Return the looser bound by Renyi divergences, or ``None`` for Poisson-sampled ``replace_one``.

    For ``replace_one`` the accountant wants the noise over the whole shift, 2 clips, and does not double.
    """
    if composition.sampled and (
        composition.subsets or any(adjacency == "replace_one" for (_, _, adjacency), _ in composition.sampled)
    ):
        return None
    import dp_accounting
    from dp_accounting import rdp

    relation = dp_accounting.NeighboringRelation[_RELATION["replace_one" if composition.subsets else "add_remove"]]
    orders = list(rdp.rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
    if composition.subsets:  # their divergence has no value below order 2; else low orders decide large epsilons
        orders = [order for order in orders if order >= 2]
    accountant = rdp.RdpAccountant(orders, relation)
    if composition.mu_squared > 0:
        accountant.compose(dp_accounting.GaussianDpEvent(1 / math.sqrt(composition.mu_squared)))
    for (rate, sigma, _), steps in composition.sampled:
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    for (rate, sigma), steps in composition.subsets:
        # Beyond the largest the library's formula has no value; less noise than there is bounds from above.
        one = dp_accounting.GaussianDpEvent(min(sigma / shift_of("replace_one"), _LARGEST))
        subset = dp_accounting.SampledWithoutReplacementDpEvent(_PARTS, math.ceil(rate * _PARTS), one)
        accountant.compose(dp_accounting.SelfComposedDpEvent(subset, steps))
    return float(accountant.get_epsilon(delta))


def _width(composition: Composition) -> float:
    """Estimate the span of the privacy loss; the sampled mu (Bu and others 2020) serves this alone."""
    mu_squared = composition.mu_squared
    for (rate, sigma, adjacency), steps in composition.sampled:
        one = (shift_of(adjacency) / sigma) ** 2
        mu_squared += steps * min(one, rate**2 * math.expm1(min(one, 700.0)))
    return mu_squared / 2 + 10 * math.sqrt(mu_squared)
