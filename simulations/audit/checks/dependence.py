"""Whether noise depends on other noise, of any coordinate, round or mechanism, and whether its tails are all there.

What is tested ought to be independent standard normals, all of them together. A dependence is looked for in four ways,
of which each sees what the others cannot: equal magnitudes wherever they stand, copies at any distance, directions that
noise never takes, and draws that go together although each is sound by itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
import scipy.fft
from jaxtyping import Float64
from scipy.special import erf
from scipy.stats import binom, chi2, norm, poisson

from fedrecall.simulations.audit.checks.normality import normal_p, two_sided
from fedrecall.simulations.audit.watching.draws import Draws

_STEP = 2.0**-20
"""Grid of the noise, in its standard deviations, at most."""

_NEAR = 4e-6
"""Magnitudes as near as that are twins, in probability: two copies on grids of their own are nearer than 99.9 %."""

CUTS = np.arange(2.5, 6.01, 0.25)
"""Deviations beyond which draws are counted."""

_MOST_SEGMENTS = 400
_CHUNK = 1 << 22  # numbers that are transformed at a time


def dependence_p_values(noise: Mapping[str, Draws]) -> dict[str, float]:
    """Return a p-value for each way in which all ``noise`` together may fail to be independent standard normals.

    ``twins``: near-equal magnitudes, whatever their signs and places, within a mechanism and between any two.
    ``lags``: each mechanism's draws in a row against themselves at every distance, which is where halves, rows, arrays
    and rounds that copy each other show, also faintly. ``spectrum``: the power of every frequency of the same.
    ``pairs``: every array of every draw against every other one at every distance, for a copy that is made once.
    ``angles``: near-equal ratios of two draws in a row, which a generator of few directions repeats.
    ``tails``: how many lie beyond each of many cuts, too few as well as too many.
    """
    rows = {name: draws.values.reshape(-1) for name, draws in noise.items()}
    worst = [min(lag_p(row) for row in rows.values()), min(spectrum_p(row) for row in rows.values())]
    tails = [tails_p(row) for row in rows.values()]
    if len(rows) > 1:
        tails.append(tails_p(np.concatenate(list(rows.values()))))
    return {
        "twins": twins_p(rows),
        "lags": min(1.0, worst[0] * len(rows)),
        "spectrum": min(1.0, worst[1] * len(rows)),
        "pairs": pairs_p(noise),
        "angles": angles_p(rows),
        "tails": min(1.0, min(tails) * len(tails)),
    }


def twins_p(rows: Mapping[str, Float64[np.ndarray, " numbers"]]) -> float:
    """Return the p-value of the number of pairs of near-equal magnitudes, in each of ``rows`` and between any two.

    Magnitudes are taken as probabilities, which are uniform: with n and m of them every pair is near with one and the
    same probability, pairs are independent two by two, and their number is Poisson as nearly as matters. The grid on
    which noise lies makes coincidences of its own; it is blurred first by a deviation of its step.
    """
    rng = np.random.default_rng(0)
    ranked = {}
    for name, row in rows.items():
        blurred = np.abs(row + rng.normal(0.0, _STEP, row.size)) / np.sqrt(1 + _STEP**2)
        ranked[name] = np.sort(erf(blurred / np.sqrt(2)))
    chance = 2 * _NEAR - _NEAR**2
    found, names = [], list(ranked)
    for i, one in enumerate(names):
        own = ranked[one]
        near = np.searchsorted(own, own + _NEAR, side="right") - np.arange(1, own.size + 1)
        found.append(_poisson(int(near.sum()), own.size * (own.size - 1) / 2 * chance))
        for other in names[:i]:
            begins, ends = (np.searchsorted(own, ranked[other] + off) for off in (-_NEAR, _NEAR))
            found.append(_poisson(int((ends - begins).sum()), own.size * ranked[other].size * chance))
    return min(1.0, min(found) * len(found))


def angles_p(rows: Mapping[str, Float64[np.ndarray, " numbers"]]) -> float:
    """Return the p-value of the number of near-equal angles of pairs of draws in a row, which are uniform."""
    found = []
    for row in rows.values():
        # Noise is on a grid: an angle is as fine as that only where the pair is not small.
        pairs = row[: row.size // 2 * 2].reshape(-1, 2)
        pairs = pairs[np.square(pairs).sum(axis=1) > 0.25]
        own = np.sort(np.arctan2(np.abs(pairs[:, 0]), np.abs(pairs[:, 1])) * (2 / np.pi))
        near = np.searchsorted(own, own + _NEAR, side="right") - np.arange(1, own.size + 1)
        found.append(_poisson(int(near.sum()), own.size * (own.size - 1) / 2 * (2 * _NEAR - _NEAR**2)))
    return min(1.0, min(found) * len(found))


def lag_p(row: Float64[np.ndarray, " numbers"]) -> float:
    """Return the p-value of the largest sum of products of a row with itself, over all distances.

    At one distance the products are edges of paths; their sum S over n of them exceeds x n with a probability of at
    most exp(-n I(x)), where I is the Legendre transform of what a long path gives: -log(cos(a / 2)) at sin(a) / 2.
    """
    size = row.size
    if size < 2:
        return 1.0
    padded = scipy.fft.next_fast_len(2 * size, real=True)
    spectrum = scipy.fft.rfft(row, padded)
    sums = scipy.fft.irfft(np.abs(spectrum) ** 2, padded)[1:size]
    counts = np.arange(size - 1, 0, -1)
    exponent = counts * _rate_of(np.abs(sums) / counts)
    return min(1.0, 2 * (size - 1) * float(np.exp(-exponent.max())))


def spectrum_p(row: Float64[np.ndarray, " numbers"]) -> float:
    """Return the p-value of the largest and the smallest power of a row's frequencies, which are exponential.

    Noise that repeats has its power in few frequencies; noise that never takes some direction, such as that of its own
    sum, has none in others.
    """
    if row.size < 8:
        return 1.0
    power = np.abs(scipy.fft.rfft(row)) ** 2 / row.size
    lone = [power[0]] + ([power[-1]] if row.size % 2 == 0 else [])
    others = power[1 : len(power) - (row.size % 2 == 0)]
    sides = [float(np.exp(-others.max())) * others.size, float(-np.expm1(-others.min())) * others.size]
    sides += [two_sided(float(chi2.cdf(one, 1)), float(chi2.sf(one, 1))) for one in lone]
    return float(min(1.0, min(sides) * len(sides)))


def tails_p(row: Float64[np.ndarray, " numbers"]) -> float:
    """Return the p-value of the counts beyond cuts: of tails that are cut, drawn again, moved or too heavy."""
    beyond = np.searchsorted(np.sort(np.abs(row)), CUTS, side="right")
    counts, chance = row.size - beyond, 2 * norm.sf(CUTS)
    sides = [
        two_sided(float(binom.cdf(count, row.size, p)), float(binom.sf(count - 1, row.size, p)))
        for count, p in zip(counts, chance, strict=True)
    ]
    return float(min(1.0, min(sides) * len(sides)))


def pairs_p(noise: Mapping[str, Draws]) -> float:
    """Return the p-value of the largest sum of products of two arrays, over all pairs of arrays and all distances.

    Given one of two arrays, each such sum is normal with the length of the part that it takes of it: exact. Beside it
    stand sums that go together in all draws of a mechanism, for arrays too short to show by themselves.
    """
    segments = [draw[part] for draws in noise.values() for draw in draws.values for part in draws.groups.values()]
    segments = [segment for segment in segments if segment.size > 1]
    if len(segments) > _MOST_SEGMENTS:
        chosen = np.random.default_rng(0).choice(len(segments), _MOST_SEGMENTS, replace=False)
        segments = [segments[i] for i in sorted(chosen)]
    segments.sort(key=len, reverse=True)
    found = list(_crossed(segments))
    every = normal_p(max((score for score, _ in found), default=0.0)) * sum(tests for _, tests in found)
    pooled = [score for draws in noise.values() for score in _pooled(draws)]
    together = normal_p(max(pooled, default=0.0)) * len(pooled)
    return min(1.0, 2 * min(every if found else 1.0, together if pooled else 1.0))


def _crossed(segments: Sequence[Float64[np.ndarray, " numbers"]]) -> Iterator[tuple[float, int]]:
    """Yield, for segments from long to short, the largest score of each against some shorter ones, and their number."""
    for i, one in enumerate(segments[:-1]):
        padded = scipy.fft.next_fast_len(2 * one.size, real=True)
        spectrum = scipy.fft.rfft(one, padded)
        at_once = max(1, _CHUNK // padded)
        for size, alike in groupby(segments[i + 1 :], key=len):
            others = list(alike)
            for begin in range(0, len(others), at_once):
                rows = np.array(others[begin : begin + at_once])
                products = scipy.fft.irfft(spectrum * np.conj(scipy.fft.rfft(rows, padded)), padded)
                squares = np.cumsum(np.square(rows), axis=1)
                whole = squares[:, -1:]
                # The shorter one begins where the longer one does, or later; then what of it hangs over, both sides.
                inside = one.size - size + 1
                sums = np.hstack([products[:, : one.size], products[:, padded - size + 1 :]])
                before = squares[:, -2::-1]
                parts = np.hstack([np.repeat(whole, inside, axis=1), before, whole - before])
                yield _largest(sums, parts, whole), sums.size


def _largest(sums: np.ndarray, squares: np.ndarray, whole: np.ndarray) -> float:
    """Return the largest sum over the root of its squares; parts too small for the arithmetic count as nothing."""
    usable = squares > 1e-9 * np.maximum(whole, 1e-300)
    return float(np.max(np.abs(sums[usable]) / np.sqrt(squares[usable]), initial=0.0))


def _pooled(draws: Draws) -> Iterator[float]:
    """Yield the scores of each two arrays of a mechanism that begin alike, over all its draws together."""
    if len(draws.values) < 2:
        return
    parts = [draws.values[:, part] for part in draws.groups.values()]
    for i, one in enumerate(parts):
        for other in parts[:i]:
            size = min(one.shape[1], other.shape[1])
            length = float(np.linalg.norm(other[:, :size]))
            yield abs(float(np.sum(one[:, :size] * other[:, :size]))) / max(length, 1e-300)


def _poisson(count: int, expected: float) -> float:
    return float(poisson.sf(count - 1, expected))


_ANGLES = np.linspace(0.0, np.pi / 2 - 1e-6, 20_001)
_SLOPES = np.tan(_ANGLES / 2) / np.cos(_ANGLES)
_EXPONENTS = np.sin(_ANGLES) / 2 * _SLOPES + np.log(np.cos(_ANGLES / 2))


def _rate_of(mean: np.ndarray) -> np.ndarray:
    """Return I of ``lag_p``, a little less between the points where it is worked out."""
    # Chords of a convex function lie above it: the point below keeps the bound one.
    place = np.searchsorted(_SLOPES, mean, side="right") - 1
    return np.asarray(_EXPONENTS[place])
