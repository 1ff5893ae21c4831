"""Is this the noise that the plan states? Exact tests of numbers that ought to be independent standard normals."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64
from scipy.stats import chi2, kstest, norm

Normals = Float64[np.ndarray, "draws coordinates"]

_LARGEST_KS = 200_000
_MOST_DRAWS = 400
_HALF_STEP = 2.0**-21


def two_sided(low: float, high: float) -> float:
    """Return the p-value of a two-sided test from those of its sides."""
    return min(1.0, 2 * min(low, high))


def variance_p(square_sum: float, freedom: int) -> float:
    """Return the two-sided p-value of a sum of ``freedom`` squared standard normals."""
    return two_sided(float(chi2.cdf(square_sum, freedom)), float(chi2.sf(square_sum, freedom)))


def normal_p(score: float) -> float:
    """Return the two-sided p-value of a standard normal."""
    return float(2 * norm.sf(abs(score)))


def noise_p_values(values: Normals, groups: Mapping[str, slice]) -> dict[str, float]:
    """Return a p-value for each way in which ``values`` may fail to be independent standard normals.

    ``scale``: their variance. ``shape``: Kolmogorov and Smirnov. ``coordinate``: the variance of each coordinate over
    draws and of each group of coordinates, the worst of them times their number (a row without noise). ``draws``:
    each draw against each other one, the worst times their number (noise used twice).
    """
    wide = np.asarray(values, dtype=np.float64)
    draws, size = wide.shape
    found = {"scale": variance_p(float(np.square(wide).sum()), wide.size)}
    every = wide.reshape(-1)
    found["shape"] = float(kstest(every[:: -(-every.size // _LARGEST_KS)], "norm").pvalue)
    # Noise is snapped to a grid of 2^-20: a zero is less than half a step.
    squares = np.square(np.maximum(np.abs(wide), _HALF_STEP)).sum(axis=0)
    low, high = chi2.cdf(squares, draws), chi2.sf(squares, draws)
    parts = [two_sided(float(low.min()), float(high.min())) * size]
    for part in groups.values():
        some = squares[part]
        parts.append(variance_p(float(some.sum()), some.size * draws) * len(groups))
        # Runs of coordinates: a row of an item table without noise is a run of zeros.
        runs = some[: some.size // 8 * 8].reshape(-1, 8).sum(axis=1)
        if runs.size:
            sides = float(chi2.cdf(runs, 8 * draws).min()), float(chi2.sf(runs, 8 * draws).min())
            parts.append(two_sided(*sides) * runs.size * len(groups))
    found["coordinate"] = min(1.0, min(parts) * 3)
    if draws > 1:
        some = wide[:_MOST_DRAWS]
        # Given one of two draws, their inner product is normal with its length.
        products = some @ some.T / np.maximum(np.linalg.norm(some, axis=1), 1e-300)[:, None]
        upper = np.abs(products[np.triu_indices(len(some), k=1)])
        found["draws"] = min(1.0, normal_p(float(upper.max())) * upper.size)
    return found


def seen_scale(freedom: int, level: float) -> tuple[float, float]:
    """Return the scales beyond which ``scale`` alarms with a chance of at least 99 %, at ``level``: the power."""
    low = np.sqrt(chi2.ppf(level / 2, freedom) / chi2.ppf(0.99, freedom))
    high = np.sqrt(chi2.isf(level / 2, freedom) / chi2.ppf(0.01, freedom))
    return float(low), float(high)
