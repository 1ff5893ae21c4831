"""Recall by group of users: activity deciles, and the groups that the data set knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from fedrecall.protocol.errors import DataError

SMALLEST_GROUP = 20
"""Groups of fewer users are listed but do not enter the gap: their recall is mostly chance."""


@dataclass(frozen=True, kw_only=True)
class GroupMetrics:
    """Metrics of the groups of one attribute.

    Attributes:
        users: number of evaluated users in each group.
        metrics: mean of each metric in each group: ``metrics["recall@10"][label]``.
        gaps: best minus worst group of at least ``SMALLEST_GROUP`` users; 0 with fewer than two such groups.

    """

    users: dict[str, int]
    metrics: dict[str, dict[str, float]]
    gaps: dict[str, float]


def activity_deciles(train_counts: Int64[np.ndarray, " evaluated"]) -> tuple[str, ...]:
    """Label users ``1`` (fewest training events) to ``10``; equal counts share one, so some may be empty."""
    if not len(train_counts):
        return ()
    edges = np.quantile(train_counts, np.arange(1, 10) / 10)
    return tuple(f"{d}" for d in 1 + np.searchsorted(edges, train_counts, side="left"))


def group_metrics(labels: Sequence[str], per_user: Mapping[str, Float64[np.ndarray, " evaluated"]]) -> GroupMetrics:
    """Average each metric of ``per_user`` within the groups that ``labels`` (one an evaluated user) name."""
    for metric, values in per_user.items():
        if len(values) != len(labels):
            raise DataError(f"{len(labels)} group labels for {len(values)} values of {metric}: one a user is needed")
    names = sorted(set(labels), key=lambda x: (not x.isdecimal(), int(x) if x.isdecimal() else 0, x))
    number = {name: j for j, name in enumerate(names)}
    member = np.array([number[x] for x in labels], dtype=np.int64)
    sizes = np.bincount(member, minlength=len(names))
    large = sizes >= SMALLEST_GROUP
    metrics, gaps = {}, {}
    for metric, values in per_user.items():
        means = np.bincount(member, weights=values, minlength=len(names)) / sizes
        metrics[metric] = {name: float(m) for name, m in zip(names, means, strict=True)}
        gaps[metric] = float(np.ptp(means[large])) if large.sum() > 1 else 0.0
    return GroupMetrics(users={name: int(n) for name, n in zip(names, sizes, strict=True)}, metrics=metrics, gaps=gaps)
