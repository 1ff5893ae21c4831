"""Lower bounds of mu, for releases whose trade-off curve is claimed to be Gaussian.

A mu-Gaussian release keeps every test at ``PhiInv(1 - FPR) - PhiInv(FNR) <= mu`` (Dong, Roth and Su 2022,
section 2.3); Nasr and others 2023, "Tight Auditing of Differentially Private Machine Learning", section 4,
audit with it. The bound refutes a Gaussian claim. It is not a model-free epsilon: the ``epsilon`` of its
result is what the Gaussian curve of that mu would have.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from scipy.special import ndtri

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.audit.rates import RateBounds, Scores, candidates, rate_bounds, split_scores
from fedrecall.privacy.audit.result import AuditResult, check_levels
from fedrecall.protocol.plan import Adjacency


def gaussian_bound(
    present: Scores,
    absent: Scores,
    *,
    thresholds: Sequence[float],
    delta: float,
    relation: Adjacency,
    alpha: float = 0.05,
) -> AuditResult:
    """Return a lower bound of mu, and the epsilon of that Gaussian at ``delta``, which must be above 0.

    The arguments and errors are those of ``clopper_pearson_bound``.
    """
    check_levels(alpha, delta, zero_delta=False)
    bounds = rate_bounds(present, absent, thresholds, alpha / (2 * max(1, len(thresholds))))
    mu = float(_mus(bounds).max())
    return AuditResult(
        method=f"Gaussian mu, {bounds.thresholds.size} threshold(s) fixed beforehand",
        kind="bound",
        epsilon=gaussian_epsilon(mu, delta),
        delta=delta,
        mu=mu,
        confidence=1 - alpha,
        relation=relation,
        trials=len(present) + len(absent),
        assumes="independent trials, a Gaussian trade-off curve",
    )


def gaussian_split_bound(
    present: Scores,
    absent: Scores,
    *,
    rng: np.random.Generator,
    delta: float,
    relation: Adjacency,
    alpha: float = 0.05,
) -> AuditResult:
    """Return the same with a threshold found on one half of the scores and judged on the other half.

    ``rng`` draws the halves; ``trials`` counts the judging half. Raises as ``gaussian_bound``.
    """
    check_levels(alpha, delta, zero_delta=False)
    chosen, judged = split_scores(present, absent, rng)
    cuts = candidates(*chosen)
    # This half only chooses, so its thresholds need not be paid for.
    values = _mus(rate_bounds(*chosen, list(cuts), alpha / 2))
    best = float(cuts[int(np.argmax(values))])
    return gaussian_bound(*judged, thresholds=[best], delta=delta, relation=relation, alpha=alpha)


def _mus(bounds: RateBounds) -> Float64[np.ndarray, " thresholds"]:
    """Return the mu of each threshold, at least 0; a rate bound of 1 says nothing."""
    useful = (bounds.false_positive < 1) & (bounds.false_negative < 1)
    mus = -ndtri(np.where(useful, bounds.false_positive, 0.5)) - ndtri(np.where(useful, bounds.false_negative, 0.5))
    return np.maximum(np.where(useful, mus, 0.0), 0.0)
