"""Released sums against canaries whose direction the auditor knows: the sharpest test of our own noise.

A canary adds a known vector of norm C to the sum when it takes part. The sum projected on that vector, over
C^2, is then N(1, sigma^2) against N(0, sigma^2), with sigma the noise multiplier, and a mixture where a coin of
rate q decides (Nasr and others 2021, "Adversary Instantiation", section 4; Steinke and others 2023, section 6).
What the other devices send adds to both sides alike.
"""

import math

import numpy as np
from jaxtyping import Float64, Num
from scipy.optimize import brentq
from scipy.special import logsumexp
from scipy.stats import nct

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.audit.rates import Scores
from fedrecall.privacy.audit.result import AuditResult, check_levels, checked_scores
from fedrecall.protocol.errors import ScoreError, UsageError
from fedrecall.protocol.plan import Adjacency

_LARGEST = 1e4
"""Statistic up to which scipy's non-central t is exact to a millionth."""


def canary_projections(
    sums: Num[np.ndarray, "rounds coordinates"], canaries: Num[np.ndarray, "canaries coordinates"]
) -> Float64[np.ndarray, "rounds canaries"]:
    """Return the projection of every released sum on every canary, 1 on average where the canary took part.

    Raises:
        ScoreError: something is not finite, the coordinates differ in number, or a canary is zero.
    """
    wide, directions = np.asarray(sums, dtype=np.float64), np.asarray(canaries, dtype=np.float64)
    if wide.ndim != 2 or directions.ndim != 2 or wide.shape[1] != directions.shape[1]:
        raise ScoreError(f"sums {wide.shape} and canaries {directions.shape} need the same number of coordinates")
    square = np.square(directions).sum(axis=1)
    if not (np.isfinite(wide).all() and np.isfinite(square).all() and (square > 0).all()):
        raise ScoreError("a sum or a canary is not finite, or a canary is zero: it has no direction")
    return np.asarray(wide @ directions.T / square)


def membership_scores(
    projections: Float64[np.ndarray, "rounds canaries"], *, noise_multiplier: float, sample_rate: float = 1.0
) -> Float64[np.ndarray, " canaries"]:
    """Return the log-likelihood ratio of each canary's projections, in with rate ``sample_rate`` against out.

    By Neyman and Pearson no score tells better who is in, if the noise is as claimed. Higher is in; feed it to
    any bound of this folder.

    Raises:
        UsageError: ``noise_multiplier`` is not above 0, or ``sample_rate`` not in (0, 1].
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise UsageError(f"noise_multiplier is {noise_multiplier}: choose it finite and above 0")
    if not 0 < sample_rate <= 1:
        raise UsageError(f"sample_rate is {sample_rate}: choose it above 0 and at most 1")
    ratio = (2 * projections - 1) / (2 * noise_multiplier**2)
    if sample_rate < 1:
        ratio = logsumexp(np.stack([np.zeros_like(ratio), ratio]), axis=0, b=[[[1 - sample_rate]], [[sample_rate]]])
    return np.asarray(ratio.sum(axis=0))


def white_box_bound(
    present: Scores,
    absent: Scores,
    *,
    releases: int,
    delta: float,
    relation: Adjacency,
    alpha: float = 0.05,
) -> AuditResult:
    """Return a lower bound of the mu of ``releases`` unsampled releases from projections on canaries.

    The shift between the sides in their common standard deviation is bounded by inverting Student's
    non-central t, which is exact for normal projections and needs no threshold. Where mu is 1 a release, 100 on
    each side bound it by 0.76, and 5,000 by 0.965.

    Args:
        present: one projection for each release in which its canary took part, independent of each other.
        absent: one projection for each release in which its canary did not.
        releases: with independent noise and a unit in all of them; mu grows with the square root.
        delta: above 0, below 1; of the epsilon that a Gaussian of that mu has.
        relation: what taking part changes.
        alpha: probability that the bound is too high.

    Raises:
        ScoreError: scores are not finite, or fewer than two a side.
        UsageError: ``releases`` is below 1, or a level out of range.
    """
    check_levels(alpha, delta, zero_delta=False)
    if releases < 1:
        raise UsageError(f"releases is {releases}: choose at least 1")
    high, low = checked_scores("present", present), checked_scores("absent", absent)
    freedom = high.size + low.size - 2
    spread = float(np.square(high - high.mean()).sum() + np.square(low - low.mean()).sum())
    if min(high.size, low.size) < 2:
        raise ScoreError(f"{high.size} and {low.size} projections: a spread needs at least two a side")
    scale = math.sqrt(high.size * low.size / (high.size + low.size))
    difference = float(high.mean() - low.mean()) * scale
    deviation = math.sqrt(spread / freedom)
    # A smaller statistic gives a lower bound, which is sound. Sums without noise, or with the same noise every
    # time, leave hardly any deviation, and must end in a high bound and not in an error.
    statistic = 0.0
    if difference > 0:
        statistic = _LARGEST if difference > _LARGEST * deviation else difference / deviation
    mu = _least_shift(statistic, freedom, alpha) / scale * math.sqrt(releases)
    return AuditResult(
        method=f"white box, projections over {releases} release(s)",
        kind="bound",
        epsilon=gaussian_epsilon(mu, delta),
        delta=delta,
        mu=mu,
        confidence=1 - alpha,
        relation=relation,
        trials=high.size + low.size,
        assumes="independent normal projections with one variance, no sampling",
    )


def _least_shift(statistic: float, freedom: int, alpha: float) -> float:
    """Return the least shift, at least 0, under which so large a ``statistic`` is no rarer than ``alpha``."""

    def excess(shift: float) -> float:
        return float(nct.sf(statistic, freedom, shift)) - alpha

    if statistic <= 0 or excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, statistic + 1.0, xtol=1e-9))
