"""From an attack's scores to figures with their error: AUC, the rate of hits at few false alarms, an epsilon.

Scores of one device, or from one update, hang together; they are resampled together, by cluster.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num
from scipy.stats import rankdata

from fedrecall.privacy.audit import AuditResult, clopper_pearson_split_bound
from fedrecall.protocol.errors import ScoreError
from fedrecall.protocol.plan import Adjacency
from fedrecall.simulations.audit.attacks.logistic import fit, log_probabilities
from fedrecall.simulations.audit.watching.attempt import Attempt, Verdict

CONFIDENCE = 0.95
"""Of the intervals of AUC."""

ALPHA = 1e-3
"""Chance that one attack's epsilon is above the truth: small, since an audit makes dozens of attempts."""

_MIX = "all together"
_RESAMPLES = 400


@dataclass(frozen=True, kw_only=True, eq=False)
class Guesses:
    """What an attack said of pairs whose truth is known.

    Attributes:
        scores: higher where the attack believes it; finite.
        truth: whether it was so.
        clusters: pairs of one cluster are not independent of each other.
    """

    scores: Float64[np.ndarray, " pairs"]
    truth: Bool[np.ndarray, " pairs"]
    clusters: Int64[np.ndarray, " pairs"]

    def of(self, keep: Bool[np.ndarray, " pairs"]) -> "Guesses":
        """Return the pairs where ``keep`` holds."""
        return replace(self, scores=self.scores[keep], truth=self.truth[keep], clusters=self.clusters[keep])


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What an attack is held against: ``epsilon`` at ``delta`` for ``relation``, or ``None`` where none is claimed."""

    epsilon: float | None
    delta: float
    relation: Adjacency


def auc(guesses: Guesses) -> float:
    """Return the chance that a true pair scores above a false one, ties counting half.

    Raises:
        ScoreError: all pairs are true, or all false, or a score is not finite.
    """
    present = int(guesses.truth.sum())
    absent = len(guesses.truth) - present
    if not present or not absent:
        raise ScoreError(f"{present} pairs are true and {absent} false: an AUC needs both")
    if not np.isfinite(guesses.scores).all():
        raise ScoreError("scores hold NaN or infinity: a score that failed is no evidence, leave its pair out")
    ranks = rankdata(guesses.scores)
    above = float(ranks[guesses.truth].sum()) - present * (present + 1) / 2
    return above / (present * absent)


def auc_interval(guesses: Guesses, rng: np.random.Generator) -> tuple[float, float]:
    """Return a 95 % interval of ``auc``: percentiles over resampled clusters (Efron and Tibshirani 1993, chapter 13).

    Where every resample is perfect, the other end is the rule of three over clusters.
    """
    order = np.argsort(guesses.scores, kind="stable")
    truth = guesses.truth[order]
    names, cluster = np.unique(guesses.clusters[order], return_inverse=True)
    _, tie = np.unique(guesses.scores[order], return_inverse=True)
    found = []
    for _ in range(_RESAMPLES):
        weight = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))[cluster]
        absent = np.bincount(tie, weights=weight * ~truth)
        present = np.bincount(tie, weights=weight * truth)
        pairs = absent.sum() * present.sum()
        if pairs > 0:
            below = np.cumsum(absent) - absent / 2
            found.append(float((present * below).sum() / pairs))
    low, high = np.quantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if found else (0.0, 1.0)
    few = min(1.0, 3 / len(names))
    return (1 - few if low >= 1 else float(low)), (few if high <= 0 else float(high))


def tpr_at(guesses: Guesses, fpr: float) -> float | None:
    """Return the share of true pairs found at a threshold that at most a share ``fpr`` of false ones reach.

    ``None`` with fewer than 1 / ``fpr`` false pairs, which cannot tell.
    """
    absent = np.sort(guesses.scores[~guesses.truth])[::-1]
    allowed = math.floor(fpr * len(absent) + 1e-9)
    if allowed < 1:
        return None
    threshold = absent[allowed] if allowed < len(absent) else -np.inf
    return float(np.mean(guesses.scores[guesses.truth] > threshold))


def halves(clusters: Num[np.ndarray, " pairs"], rng: np.random.Generator) -> Bool[np.ndarray, " pairs"]:
    """Return which pairs are in the half of the clusters to choose on; the others are to judge by."""
    names, cluster = np.unique(clusters, return_inverse=True)
    chosen = np.zeros(len(names), dtype=bool)
    chosen[rng.permutation(len(names))[: len(names) // 2]] = True
    return chosen[cluster]


def best_of(
    scorers: Mapping[str, Float64[np.ndarray, " pairs"]], guesses: Guesses, rng: np.random.Generator
) -> tuple[str, Guesses]:
    """Return the scorer, or the mix of all, that is best on one half of the clusters, and its guesses on the other.

    So that the more ways an attack tries, the stronger it gets, and never the luckier.
    """
    first = halves(guesses.clusters, rng)
    # A mix is rated on pairs that it was not fitted to, or it would win by being flexible.
    fitted = first & _half_of(first, guesses.clusters, rng)
    rating = {**scorers, _MIX: _mixed(scorers, guesses.truth, fitted)}
    rated = {name: auc(replace(guesses, scores=scores).of(first & ~fitted)) for name, scores in rating.items()}
    name = max(rated, key=lambda n: rated[n])
    scores = _mixed(scorers, guesses.truth, first) if name == _MIX else scorers[name]
    return name, replace(guesses, scores=scores).of(~first)


def _half_of(
    first: Bool[np.ndarray, " pairs"], clusters: Int64[np.ndarray, " pairs"], rng: np.random.Generator
) -> Bool[np.ndarray, " pairs"]:
    half = np.zeros(len(first), dtype=bool)
    half[first] = halves(clusters[first], rng)
    return half


def _mixed(
    scorers: Mapping[str, Float64[np.ndarray, " pairs"]],
    truth: Bool[np.ndarray, " pairs"],
    first: Bool[np.ndarray, " pairs"],
) -> Float64[np.ndarray, " pairs"]:
    """Return the log-odds of a logistic regression on all scorers, fitted where ``first`` holds."""
    features = np.stack(list(scorers.values()), axis=1)
    spread = features.std(axis=0)
    features = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    weights = fit(features[first], truth[first].astype(np.int64), 2, penalty=1.0)
    logs = log_probabilities(features, weights)
    return np.asarray(logs[:, 1] - logs[:, 0])


def to_attempt(
    guesses: Guesses,
    *,
    name: str,
    adversary: str,
    unit: str,
    what: str,
    claim: Claim | None,
    rng: np.random.Generator,
    seconds: float,
    detail: Mapping[str, Any] | None = None,
) -> Attempt:
    """Return the row of an attack whose result is an AUC; its epsilon is a Clopper-Pearson bound from a split.

    ``broken`` means that the bound exceeds the claim, at a confidence of 1 - ``ALPHA``. Without a ``claim`` what was
    guessed is not whether a neighbour is there, and there is no epsilon.
    """
    low, high = auc_interval(guesses, rng)
    verdict, found = held_against(guesses, claim, rng)
    return Attempt(
        name=name,
        adversary=adversary,
        unit=unit,
        what=what,
        score=auc(guesses),
        metric="auc",
        chance=0.5,
        low=low,
        high=high,
        confidence=CONFIDENCE,
        claimed_epsilon=claim.epsilon if claim else None,
        empirical_epsilon=found.epsilon if found else None,
        power=power(guesses, claim.delta if claim else None, (high - low) / 2),
        verdict=verdict,
        trials=len(guesses.truth),
        seconds=seconds,
        detail={
            "tpr@0.1%": tpr_at(guesses, 1e-3),
            "tpr@1%": tpr_at(guesses, 1e-2),
            "bound": {"method": found.method, "confidence": 1 - ALPHA, "assumes": found.assumes} if found else None,
            "clusters": len(np.unique(guesses.clusters)),
            **(detail or {}),
        },
    )


def held_against(guesses: Guesses, claim: Claim | None, rng: np.random.Generator) -> tuple[Verdict, AuditResult | None]:
    """Return the verdict on a claim and the bound that it rests on."""
    if claim is None:
        return "shows", None
    found = clopper_pearson_split_bound(
        guesses.scores[guesses.truth],
        guesses.scores[~guesses.truth],
        rng=rng,
        delta=claim.delta,
        relation=claim.relation,
        alpha=ALPHA,
    )
    if claim.epsilon is None:
        return "shows", found
    return ("broken" if found.epsilon > claim.epsilon else "held"), found


def power(guesses: Guesses, delta: float | None, half_width: float) -> str:
    """Return in words which leak so many guesses would have shown; ``delta`` is ``None`` where there is no epsilon."""
    words = f"an AUC above {min(1.0, 0.5 + half_width):.2f} would stand out from chance"
    if delta is None:
        return words
    few = max(1, min(int(guesses.truth.sum()), int((~guesses.truth).sum())) // 2)
    # The rate that no mistake in ``few`` trials leaves open, on the judging half.
    rate = 1 - (ALPHA / 2) ** (1 / few)
    most = math.log(max(1.0, (1 - rate - delta) / rate))
    return f"{words}; a perfect attack on so many pairs would show an epsilon of {most:.1f}"


def not_tested(name: str, adversary: str, unit: str, why: str) -> Attempt:
    """Return the row of an attack that could not be made, with the reason."""
    return Attempt(
        name=name,
        adversary=adversary,
        unit=unit,
        what=why,
        score=None,
        metric="auc",
        power="none: it was not made",
        verdict="not tested",
        trials=0,
        seconds=0.0,
    )
