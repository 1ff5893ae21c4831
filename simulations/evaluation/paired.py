"""Paired comparison of two evaluations over the same users: differences, not two separate error bars."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from fedrecall.protocol.errors import UsageError

if TYPE_CHECKING:
    from fedrecall.simulations.evaluation.evaluate import Evaluation  # loads torch, which comparing runs does not need

RESAMPLES = 10_000


def compare_paired(a: "Evaluation", b: "Evaluation", metric: str, *, rng: np.random.Generator) -> dict[str, float]:
    """Compare ``a`` with ``b`` user by user in ``metric``, one of their ``per_user`` names.

    Returns what ``paired_difference`` does.

    Raises:
        UsageError: an unknown metric, or evaluations of different users.

    """
    for side in (a, b):
        if metric not in side.per_user:
            raise UsageError(
                f"metric {metric!r} has no value per user in {side.recaller}: choose from {sorted(side.per_user)}"
            )
    if not np.array_equal(a.users, b.users):
        raise UsageError(
            f"{a.recaller} was evaluated on {len(a.users)} users and {b.recaller} on {len(b.users)} that are "
            "not the same: a paired comparison needs the same split and part"
        )
    return paired_difference(a.per_user[metric], b.per_user[metric], rng=rng)


def paired_difference(
    a: Float[np.ndarray, " users"], b: Float[np.ndarray, " users"], *, rng: np.random.Generator
) -> dict[str, float]:
    """Compare two values of each user, given in the same order of users.

    Returns:
        ``difference`` (mean of a - b), ``low`` and ``high`` (95 % percentile bootstrap over users, Efron and
        Tibshirani 1993, chapter 13), ``sign_test_p`` (two-sided, ties left out), ``wins``, ``losses`` and
        ``users``.

    Raises:
        UsageError: no users, or arrays of different shapes.

    """
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise UsageError(f"values of shapes {a.shape} and {b.shape}: a pair needs one value a user, of the same users")
    from scipy import stats  # takes a second to load

    differences = a - b
    n = len(differences)
    low, high = np.quantile(_bootstrap_means(differences, rng), [0.025, 0.975])
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return {
        "difference": float(differences.mean()),
        "low": float(low),
        "high": float(high),
        "sign_test_p": float(p),
        "wins": wins,
        "losses": losses,
        "users": n,
    }


def _bootstrap_means(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of ``RESAMPLES`` resamples: the counts of the distinct values in one are multinomial."""
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    block = max(1, (1 << 22) // len(distinct))
    means = [
        rng.multinomial(n, counts / n, size=min(block, RESAMPLES - start)) @ distinct / n
        for start in range(0, RESAMPLES, block)
    ]
    return np.concatenate(means)
