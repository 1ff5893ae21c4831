"""Robust aggregation as a what-if: the median and the trimmed mean of each coordinate (Yin and others 2018).

No plan offers them: they need every device's update in the clear, and neither has a known sensitivity. The audit
shows what they would buy against poisoning, and what they hide of the devices.
"""

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.records import Arrays

Robust = Literal["median", "trimmed mean"]
ROBUST: tuple[Robust, ...] = get_args(Robust)

TRIMMED = 0.1
"""Share of the values of a coordinate that are dropped on either side."""


def aggregate(updates: Float[np.ndarray, "devices *shape"], how: Robust) -> Float[np.ndarray, "*shape"]:
    """Return the median, or the mean without the tenth of the values at either end, of each coordinate.

    Raises:
        UsageError: there is no update.
    """
    if not len(updates):
        raise UsageError("there are no updates: aggregate at least one")
    if how == "median":
        return np.asarray(np.median(updates, axis=0))
    cut = int(TRIMMED * len(updates))
    ordered = np.partition(updates, (cut, len(updates) - 1 - cut), axis=0)
    return np.asarray(ordered[cut : len(updates) - cut].mean(axis=0))


def aggregate_all(updates: Iterable[Arrays], how: Robust) -> dict[str, np.ndarray]:
    """Return ``aggregate`` of each array times the number of updates: what stands in the place of their sum."""
    rows = [{name: array.astype(np.float32) for name, array in update.items()} for update in updates]
    if not rows:
        raise UsageError("there are no updates: aggregate at least one")
    return {n: aggregate(np.stack([row[n] for row in rows]), how).astype(np.float64) * len(rows) for n in rows[0]}
