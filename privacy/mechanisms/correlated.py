"""Correlated noise for limited participation (DP-FTRL): rounds whose noise partly cancels in the running model.

The model after t rounds is a prefix sum A x of the rounds' sums x, A the lower triangle of ones. The server
releases x_t + y_t with y = C^-1 z and z independent N(0, std^2): what it releases is C^-1 (C x + z), no more than
the Gaussian mechanism on C x. ``coefficients`` are those of C^-1, the first ``bands`` of the series of
(1 - v)^(1/2), so that y_t is a weighted sum of the last ``bands`` draws (the banded inverse square root: Kalinin,
McKenna, Upadhyay and Lampert 2025, arXiv 2505.12128)::

    y_t = d_0 z_t + d_1 z_(t-1) + ... + d_(bands-1) z_(t-bands+1),   d = 1, -1/2, -1/8, -1/16, ...

The unit is one device under zero-out adjacency: its contributions, each of L2 norm at most 1, become zero in every
round in which it took part, and it took part in at most ``participations`` rounds, any two of them at least
``min_gap`` apart, of a horizon of ``steps``. Nothing is sampled and nothing about who took part is secret. With
noise of standard deviation noise_multiplier * clip_norm all rounds together are mu-Gaussian with
mu = sensitivity / noise_multiplier, also where a round's sum depends on the releases before it (C is lower
triangular: Denisov and others 2022, arXiv 2202.08312, theorem 2.1).
"""

import math
from collections.abc import Callable
from functools import partial
from operator import index

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

from fedrecall.privacy.mechanisms.noise import NoiseSource, noise_kind, rounded
from fedrecall.protocol.errors import PlanError

Coefficients = Float64[np.ndarray, "bands"]


def coefficients(bands: int) -> Coefficients:
    """Return the first ``bands`` coefficients of (1 - v)^(1/2); one band is independent noise."""
    _at_least_one(bands=bands)
    order = np.arange(1, bands)
    return np.cumprod(np.concatenate([[1.0], (2 * order - 3) / (2 * order)]))


def sensitivity(coefficients: Coefficients, steps: int, participations: int, min_gap: int) -> float:
    """Return how far one device moves C x in L2 (Frobenius) norm: exact, for vector contributions, any bands.

    The entries of C are at least 0, so aligned contributions of norm 1 are the worst ones; they do not grow
    along a column either, so participating in rounds 0, min_gap, 2 min_gap ... is the worst schedule (Kalinin
    and Lampert 2024, arXiv 2405.13763, theorem 2). For ``coefficients`` both conditions hold: the first column of C
    obeys c_t = |d_1| c_(t-1) + |d_2| c_(t-2) + ..., a positive recursion that starts with the falling
    coefficients of (1 - v)^(-1/2). Costs O(steps * (bands + participations)).

    Raises:
        PlanError: a count below 1, or coefficients whose C breaks a condition.
    """
    _at_least_one(steps=steps, participations=participations, min_gap=min_gap)
    column = _strategy(coefficients, steps)
    if not (np.all(np.isfinite(column)) and np.all(column >= 0) and np.all(np.diff(column) <= 0)):
        raise PlanError(
            "the coefficients' inverse is negative or grows: its sensitivity is unknown; use coefficients()"
        )
    moved = np.zeros(steps)
    for start in range(0, steps, min_gap)[:participations]:
        moved[start:] += column[: steps - start]
    return float(np.linalg.norm(moved))


def prefix_error(coefficients: Coefficients, steps: int) -> tuple[float, float]:
    """Return the standard deviation of the prefix sums' noise at std 1: root mean square over rounds, and worst.

    Independent noise has sqrt((steps + 1) / 2) and sqrt(steps). Multiply by ``sensitivity`` to compare schemes at
    one epsilon. Raises PlanError for ``steps`` below 1.
    """
    _at_least_one(steps=steps)
    weights = np.cumsum(_padded(coefficients, steps))
    variance = np.cumsum(weights**2)
    return math.sqrt(variance.mean()), math.sqrt(variance[-1])


def best_bands(steps: int, participations: int, min_gap: int) -> int:
    """Return the number of bands whose rms prefix error at one epsilon no further band lowers.

    Fewer bands cost less memory (see ``CorrelatedNoise``): two thirds of them lose about 2 %. Raises PlanError for a
    count below 1.
    """
    _at_least_one(steps=steps)
    least = math.inf
    for bands in range(1, steps + 1):
        d = coefficients(bands)
        error = prefix_error(d, steps)[0] * sensitivity(d, steps, participations, min_gap)
        if error >= least:
            return bands - 1
        least = error
    return steps


class CorrelatedNoise:
    """The noise of every round of one release that repeats, as a function of the round alone.

    The draws' key or seed is all the state: a process that starts again with it gives the same noise to the last
    bit, for the next round, an earlier one, or any other. ``bands`` times the noise of a round stay in memory;
    what is no longer there is drawn again.

    Two different sums released with one round's noise give their difference away bare. After a failure release
    the identical bytes again or leave the round out (its draws still shape later rounds); the ledger decides.

    Args:
        coefficients: of C^-1.
        steps: the horizon, for which the sensitivity was worked out.
        draw: returns the independent noise of a round from its start: the same one whenever it is asked, another
            one for every other round. ``SeededNoise`` in a simulation, ``SecureNoise`` with a key elsewhere.

    Raises:
        PlanError: ``draw`` gives fresh noise every time, or the same to two rounds.

    Attributes:
        simulated: that of the draws.
    """

    def __init__(self, coefficients: Coefficients, steps: int, draw: Callable[[int], NoiseSource]) -> None:
        _at_least_one(steps=steps)
        self._coefficients = _padded(coefficients, min(len(coefficients), steps))
        self._steps = steps
        self._draw = draw
        self._calls: list[tuple[tuple[int, ...], float]] = []
        self._rounds: dict[int, _Round] = {}
        self.simulated = draw(0).simulated
        first, again, other = (draw(round).normal((4,), 1.0) for round in (0, 0, 1))
        if not np.array_equal(first, again):
            raise PlanError("the draws of a round differ when drawn again: correlated noise needs a key or a seed")
        if np.any(first == other):
            raise PlanError("rounds 0 and 1 draw the same noise: make the round a label of it")

    def of(self, round: int) -> NoiseSource:
        """Return the noise of ``round``: its i-th call gives array i. PlanError outside the horizon."""
        round = index(round)  # numpy's integers would spell other labels
        if not 0 <= round < self._steps:
            raise PlanError(f"round is {round}: the horizon is 0..{self._steps - 1}; plan more steps beforehand")
        oldest = round - len(self._coefficients) + 1
        self._rounds = {r: kept for r, kept in self._rounds.items() if oldest <= r <= round}
        return _RoundNoise(partial(self._array, round), self.simulated)

    def _array(self, round: int, call: int, shape: tuple[int, ...], std: float) -> npt.NDArray[np.float64]:
        if call == len(self._calls):
            self._calls.append((shape, std))
        if (shape, std) != self._calls[call]:
            raise PlanError(
                f"array {call} of round {round} has shape and std {(shape, std)}, in other rounds {self._calls[call]}: "
                "correlated noise needs the same arrays, clip and noise multiplier in every round"
            )
        total = np.zeros(shape)
        for lag, coefficient in enumerate(self._coefficients[: round + 1]):
            if round - lag not in self._rounds:
                self._rounds[round - lag] = _Round(self._draw(round - lag))
            total += coefficient * self._rounds[round - lag].array(call, self._calls)
        return total


class _Round:
    """The independent draws of one round so far, in the order of its calls."""

    def __init__(self, source: NoiseSource) -> None:
        self._source = source
        self._arrays: list[npt.NDArray[np.floating]] = []

    def array(self, call: int, calls: list[tuple[tuple[int, ...], float]]) -> npt.NDArray[np.floating]:
        for shape, std in calls[len(self._arrays) : call + 1]:
            self._arrays.append(self._source.normal(shape, std))
        return self._arrays[call]


class _RoundNoise:
    """The noise source of one round, from its first array on."""

    def __init__(
        self, array: Callable[[int, tuple[int, ...], float], npt.NDArray[np.float64]], simulated: bool
    ) -> None:
        self.simulated = simulated
        self._array = array
        self._calls = 0

    def normal(self, shape: tuple[int, ...], std: float, dtype: npt.DTypeLike = np.float64) -> npt.NDArray[np.floating]:
        """Return y of the round for its next array; ``std`` is that of the independent draws behind it."""
        kind = noise_kind(std, dtype)
        drawn = self._array(self._calls, shape, std)
        self._calls += 1
        return drawn.astype(kind)

    def added(self, values: npt.NDArray[np.float64], std: float) -> npt.NDArray[np.float64]:
        """Return ``values`` plus y of the round, rounded to the grid of the independent draws."""
        return rounded(values + self.normal(np.shape(values), std), std)


def _strategy(coefficients: Coefficients, steps: int) -> Float64[np.ndarray, "steps"]:
    """Return the first column of C: the power series of 1 / d."""
    from scipy.signal import lfilter  # takes a second to load

    impulse = np.zeros(steps)
    impulse[0] = 1.0
    column: Float64[np.ndarray, "steps"] = lfilter([1.0], _padded(coefficients, min(len(coefficients), steps)), impulse)
    return column


def _padded(coefficients: Coefficients, steps: int) -> Float64[np.ndarray, "steps"]:
    if coefficients.ndim != 1 or not np.all(np.isfinite(coefficients)) or not np.any(coefficients[:1] > 0):
        raise PlanError("the coefficients are not a finite vector that starts above 0: use coefficients()")
    out = np.zeros(steps)
    kept = coefficients[:steps]
    out[: len(kept)] = kept
    return out


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise PlanError(f"{name} is {count}: choose it at least 1")
