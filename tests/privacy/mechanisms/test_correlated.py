import itertools
import math
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
from scipy.special import binom

from fedrecall.privacy.mechanisms.correlated import CorrelatedNoise, best_bands, coefficients, prefix_error, sensitivity
from fedrecall.privacy.mechanisms.mechanisms import gaussian_sum
from fedrecall.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism

KEY = bytes(range(32))
SHAPES = ((), (5,), (2, 3), (0,))


def dense(column: np.ndarray, steps: int) -> np.ndarray:
    """Return the lower triangular Toeplitz matrix of a column, cut or padded to ``steps``."""
    padded = np.concatenate([column[:steps], np.zeros(max(0, steps - len(column)))])
    return scipy.linalg.toeplitz(padded, np.zeros(steps))


def strategy(bands: int, steps: int) -> np.ndarray:
    """Return C from its definition: the inverse of the banded inverse of the dense square root of the prefix sums."""
    inverse_root = np.linalg.inv(scipy.linalg.sqrtm(np.tril(np.ones((steps, steps)))).real)
    return np.linalg.inv(np.tril(np.triu(inverse_root, -(bands - 1))))


def schedules(steps: int, participations: int, min_gap: int) -> list[tuple[int, ...]]:
    """Return every set of at most ``participations`` rounds, any two at least ``min_gap`` apart, but the empty one."""
    return [
        rounds
        for size in range(1, participations + 1)
        for rounds in itertools.combinations(range(steps), size)
        if all(b - a >= min_gap for a, b in itertools.pairwise(rounds))
    ]


def seeded(round: int) -> NoiseSource:
    return SeededNoise(3, "test", round)


def keyed(round: int) -> NoiseSource:
    return SecureNoise(KEY, "test", round)


# The matrices


@pytest.mark.parametrize("bands", [1, 2, 7, 300])
def test_coefficients_are_the_binomial_series(bands: int) -> None:
    expected = [(-1) ** j * binom(0.5, j) for j in range(bands)]
    np.testing.assert_allclose(coefficients(bands), expected, rtol=1e-12)


@pytest.mark.parametrize("bands", [1, 2, 3, 9])
def test_coefficients_invert_the_strategy(bands: int) -> None:
    np.testing.assert_allclose(dense(coefficients(bands), 9) @ strategy(bands, 9), np.eye(9), atol=1e-12)


@pytest.mark.parametrize(("steps", "bands"), [(1, 1), (8, 1), (8, 3), (50, 7), (50, 50), (50, 80)])
def test_prefix_error_is_that_of_the_dense_matrices(steps: int, bands: int) -> None:
    noise = np.tril(np.ones((steps, steps))) @ dense(coefficients(bands), steps)
    by_round = np.linalg.norm(noise, axis=1)
    rms, worst = prefix_error(coefficients(bands), steps)
    assert rms == pytest.approx(math.sqrt(np.mean(by_round**2)), rel=1e-12)
    assert worst == pytest.approx(by_round.max(), rel=1e-12)


# Sensitivity

SMALL = [(n, k, b, p) for n in (1, 2, 5, 8) for k in (1, 2, 3, 9) for b in (1, 2, 3, 5, 11) for p in (1, 2, 4, 8)]


@pytest.mark.parametrize(("steps", "participations", "min_gap", "bands"), SMALL)
def test_sensitivity_is_the_worst_of_all_schedules(steps: int, participations: int, min_gap: int, bands: int) -> None:
    columns = strategy(bands, steps)
    worst = max(np.linalg.norm(columns[:, s].sum(axis=1)) for s in map(list, schedules(steps, participations, min_gap)))
    assert sensitivity(coefficients(bands), steps, participations, min_gap) == pytest.approx(worst, rel=1e-12)


@pytest.mark.parametrize(
    ("participations", "min_gap", "bands"), [(8, 1, 3), (4, 2, 5), (3, 2, 8), (2, 4, 4), (3, 3, 2)]
)
def test_no_vector_contribution_exceeds_it(
    participations: int, min_gap: int, bands: int, rng: np.random.Generator
) -> None:
    """Every sign pattern, 200 random directions, and directions climbed from each of them, in four dimensions."""
    bound = sensitivity(coefficients(bands), 8, participations, min_gap)
    columns = strategy(bands, 8)
    highest = 0.0
    for rounds in schedules(8, participations, min_gap):
        part = columns[:, list(rounds)]
        for signs in itertools.product((1.0, -1.0), repeat=len(rounds)):
            assert np.linalg.norm(part @ np.array(signs)) <= bound * (1 + 1e-12)
        given = rng.standard_normal((200, len(rounds), 4))
        for _ in range(30):
            given /= np.linalg.norm(given, axis=2, keepdims=True)
            moved = np.linalg.norm(part @ given, axis=(1, 2))
            assert moved.max() <= bound * (1 + 1e-12)
            given = part.T @ part @ given
        highest = max(highest, moved.max())
    assert highest == pytest.approx(bound, rel=1e-6)  # the climb does find the worst: the bound is not loose


@pytest.mark.parametrize(("steps", "participations", "min_gap"), [(10, 3, 2), (10, 99, 3), (10, 4, 10), (10, 4, 50)])
def test_independent_noise_pays_the_root_of_the_participations(steps: int, participations: int, min_gap: int) -> None:
    possible = min(participations, math.ceil(steps / min_gap))
    assert sensitivity(coefficients(1), steps, participations, min_gap) == pytest.approx(math.sqrt(possible))


def test_the_conditions_of_the_sensitivity_hold_at_length() -> None:
    for bands in (2, 3, 5, 17, 100, 1000, 4000):
        assert math.isfinite(sensitivity(coefficients(bands), 4000, 3, 1000))


UNKNOWN = [([1.0, -2.0], 10), ([1.0, 0.0, -0.5, -0.6], 10), ([1.0, 0.5], 2), ([1e-200, -1.0], 10), ([5e-324], 1)]


@pytest.mark.parametrize(("inverse", "steps"), UNKNOWN)
def test_a_strategy_of_unknown_sensitivity_is_refused(inverse: list[float], steps: int) -> None:
    """One that grows, late or at once, is negative, or overflows."""
    with pytest.raises(PlanError, match="sensitivity is unknown"), np.errstate(all="ignore"):
        sensitivity(np.array(inverse), steps, 2, 1)


# Error at equal epsilon: prefix error times sensitivity, against independent noise and against what is proved


def error(bands: int, steps: int, participations: int, min_gap: int) -> tuple[float, float]:
    scale = sensitivity(coefficients(bands), steps, participations, min_gap)
    rms, worst = prefix_error(coefficients(bands), steps)
    return rms * scale, worst * scale


@pytest.mark.parametrize("steps", [16, 256, 2048])
def test_one_participation_reaches_the_published_error(steps: int) -> None:
    """With all bands both errors are those of the square root (Fichtenberger, Henzinger and Upadhyay 2023).

    The worst round's error is the sum of binom(2j, j)^2 / 16^j, in the limit (ln n + Euler's constant + 4 ln 2) / pi,
    or ln(n) / pi + 1.066. No factorisation gets below (2 + ln((2n + 1) / 3)) / pi, that is ln(n) / pi + 0.507
    (Matousek, Nikolov and Talwar 2020), nor the rms below the nuclear norm of the prefix sums over n, since that
    norm is at most the product of the factors' Frobenius norms.
    """
    rms, worst = error(steps, steps, 1, steps)
    assert worst == pytest.approx(math.fsum(math.exp(2 * log_central(j)) for j in range(steps)), rel=1e-9)
    assert worst == pytest.approx((math.log(steps) + np.euler_gamma + 4 * math.log(2)) / math.pi, abs=0.3 / steps)
    assert worst > (2 + math.log((2 * steps + 1) / 3)) / math.pi
    least = nuclear_norm(steps) / steps
    assert least < error(best_bands(steps, 1, steps), steps, 1, steps)[0] <= rms < 1.12 * least


def log_central(j: int) -> float:
    """Return ln(binom(2j, j) / 4^j)."""
    return math.lgamma(2 * j + 1) - 2 * math.lgamma(j + 1) - j * math.log(4)


def nuclear_norm(steps: int) -> float:
    """Return that of the prefix sums: their singular values are 1 / (2 sin((2j - 1) pi / (4n + 2)))."""
    return sum(0.5 / math.sin((2 * j - 1) * math.pi / (4 * steps + 2)) for j in range(1, steps + 1))


CASES = [(64, 4, 16, 0.440), (256, 4, 64, 0.260), (256, 16, 16, 0.350), (1024, 4, 256, 0.150), (1024, 16, 32, 0.240)]


@pytest.mark.parametrize(("steps", "participations", "min_gap", "factor"), CASES)
def test_several_participations_cost_this_fraction_of_independent_noise(
    steps: int, participations: int, min_gap: int, factor: float
) -> None:
    """No factorisation gets below the root of k times the nuclear norm over n (tested: k divides n, k gaps fit).

    Of the n / k disjoint schedules one has a k / n-th of the squared Frobenius norm of C or more.
    """
    rms, worst = error(best_bands(steps, participations, min_gap), steps, participations, min_gap)
    independent = error(1, steps, participations, min_gap)
    assert independent == pytest.approx(
        (math.sqrt(participations * (steps + 1) / 2), math.sqrt(participations * steps))
    )
    assert math.sqrt(participations) * nuclear_norm(steps) / steps < rms < factor * independent[0]
    assert worst < factor * independent[1]


@pytest.mark.parametrize(("steps", "participations", "min_gap"), [(1, 1, 1), (20, 3, 5), (64, 4, 4), (100, 100, 1)])
def test_best_bands_is_the_best_of_all(steps: int, participations: int, min_gap: int) -> None:
    every = [error(bands, steps, participations, min_gap)[0] for bands in range(1, steps + 1)]
    assert best_bands(steps, participations, min_gap) == 1 + int(np.argmin(every))


# The noise


def is_correlated(noise: np.ndarray, bands: int, std: float) -> bool:
    """Test rounds x 100,000 values: C y / std is white exactly if y has covariance std^2 C^-1 C^-T.

    Each entry of the whitened second moment lies within 5 of its standard errors: a right one fails less than
    once in 20,000 tries over the 36 entries. A scale off by a third is 120 of them away on the diagonal.
    """
    rounds, values = noise.shape
    white = strategy(bands, rounds) @ noise / std
    errors = (white @ white.T / values - np.eye(rounds)) * math.sqrt(values) / np.sqrt(1 + np.eye(rounds))
    return bool(np.abs(errors).max() < 5.0)


def drawn(draw: Callable[[int], NoiseSource], bands: int, std: float) -> np.ndarray:
    noise = CorrelatedNoise(coefficients(bands), 6, draw)
    return np.stack([noise.of(round).normal((100_000,), std) for round in range(6)])


@pytest.mark.parametrize("draw", [seeded, keyed])
@pytest.mark.parametrize("bands", [1, 3, 6])
def test_rounds_have_the_planned_covariance(draw: Callable[[int], NoiseSource], bands: int) -> None:
    assert is_correlated(drawn(draw, bands, 2.5), bands, 2.5)


@pytest.mark.parametrize("wrong", [2 / 3, 3 / 2])
def test_the_test_rejects_a_wrong_scale(wrong: float) -> None:
    assert not is_correlated(drawn(seeded, 3, 2.5 * wrong), 3, 2.5)


def test_the_test_rejects_independent_noise_and_other_bands() -> None:
    assert not is_correlated(drawn(seeded, 1, 2.5), 3, 2.5)
    assert not is_correlated(drawn(seeded, 3, 2.5), 1, 2.5)
    assert not is_correlated(drawn(seeded, 3, 2.5), 4, 2.5)


def test_gaussian_sum_adds_it_to_every_coordinate() -> None:
    mechanism = Mechanism(name="rounds", noise_multiplier=5.0, clip_norm=0.5)
    noise = CorrelatedNoise(coefficients(3), 6, seeded)
    sums = {"a": np.zeros((100, 500)), "b": np.zeros(50_000)}
    rounds = [gaussian_sum(sums, mechanism, noise.of(round)) for round in range(6)]
    assert is_correlated(np.stack([np.concatenate([r["a"].ravel(), r["b"]]) for r in rounds]), 3, 2.5)


@pytest.mark.parametrize(("participations", "min_gap", "bands"), [(1, 6, 6), (3, 2, 2), (2, 3, 4), (6, 1, 3)])
def test_the_best_distinguisher_gets_what_the_sensitivity_says(participations: int, min_gap: int, bands: int) -> None:
    """The noise alone, without C, tells how far the worst schedule can be told apart: mu^2 = x^T Cov(y)^-1 x.

    From 100,000 draws mu is known to 0.22 %, so that 1 % is 4.5 of its standard errors. The same test rejects
    the sensitivity of independent noise and a scale off by a third, 100 and more of them away.
    """
    noise = drawn(seeded, bands, 2.5)
    precision = np.linalg.inv(noise @ noise.T / noise.shape[1])
    indicators = [np.isin(np.arange(6), rounds) for rounds in schedules(6, participations, min_gap)]
    measured = max(math.sqrt(x @ precision @ x) for x in indicators)
    claimed = sensitivity(coefficients(bands), 6, participations, min_gap) / 2.5
    assert measured == pytest.approx(claimed, rel=0.01)
    independent = sensitivity(coefficients(1), 6, participations, min_gap) / 2.5
    for wrong in (independent, claimed * 2 / 3, claimed * 3 / 2):
        assert measured != pytest.approx(wrong, rel=0.01)


# Replay, resumption and memory


def run(noise: CorrelatedNoise, round: int) -> list[np.ndarray]:
    source = noise.of(round)
    return [source.normal(shape, 1.5) for shape in SHAPES]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.shape == y.shape and x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("draw", [seeded, keyed])
@pytest.mark.parametrize("bands", [1, 4, 12])
def test_a_process_that_starts_again_draws_the_same_noise(draw: Callable[[int], NoiseSource], bands: int) -> None:
    noise = CorrelatedNoise(coefficients(bands), 12, draw)
    uninterrupted = [run(noise, round) for round in range(12)]
    for round, expected in enumerate(uninterrupted):
        fresh = CorrelatedNoise(coefficients(bands), 12, draw)
        assert same(run(fresh, round), expected)
        assert all(same(run(fresh, later), uninterrupted[later]) for later in range(round + 1, 12))
        assert same(run(noise, round), expected)  # replayed by the process that has gone on
    everything = np.concatenate([a.ravel() for arrays in uninterrupted for a in arrays])
    assert len(np.unique(everything)) == len(everything)


def test_a_half_drawn_round_disturbs_no_other() -> None:
    expected = run(CorrelatedNoise(coefficients(4), 12, seeded), 7)
    noise = CorrelatedNoise(coefficients(4), 12, seeded)
    left, right = noise.of(7), noise.of(7)
    first = left.normal(SHAPES[0], 1.5)
    noise.of(6).normal(SHAPES[0], 1.5)
    again = [right.normal(shape, 1.5) for shape in SHAPES]
    rest = [left.normal(shape, 1.5) for shape in SHAPES[1:]]
    assert same([first, *rest], expected)
    assert same(again, expected)


def test_the_kind_of_integer_does_not_matter() -> None:
    noise = CorrelatedNoise(coefficients(3), 9, seeded)
    assert same(run(noise, np.int64(4)), run(CorrelatedNoise(coefficients(3), 9, seeded), 4))  # type: ignore[arg-type]


def test_each_round_is_drawn_once_and_only_the_bands_are_kept() -> None:
    asked: list[int] = []
    alive: weakref.WeakSet[NoiseSource] = weakref.WeakSet()

    def draw(round: int) -> NoiseSource:
        asked.append(round)
        source = seeded(round)
        alive.add(source)
        return source

    noise = CorrelatedNoise(coefficients(4), 30, draw)
    asked.clear()
    for round in range(30):
        run(noise, round)
        assert len(alive) <= 4
    assert asked == list(range(30))


def test_it_is_simulated_where_its_draws_are() -> None:
    for draw, simulated in ((seeded, True), (keyed, False)):
        noise = CorrelatedNoise(coefficients(2), 3, draw)
        assert (noise.simulated, noise.of(1).simulated) == (simulated, simulated)


def test_float32_is_the_rounded_noise() -> None:
    wide = CorrelatedNoise(coefficients(3), 9, seeded).of(5).normal((50,), 2.0)
    narrow = CorrelatedNoise(coefficients(3), 9, seeded).of(5).normal((50,), 2.0, np.float32)
    assert narrow.dtype == np.float32
    assert np.array_equal(narrow, wide.astype(np.float32))


# Refusals


def test_draws_that_cannot_be_repeated_are_refused() -> None:
    with pytest.raises(PlanError, match="needs a key or a seed"):
        CorrelatedNoise(coefficients(2), 3, lambda round: SecureNoise())
    source = SeededNoise(1)
    with pytest.raises(PlanError, match="needs a key or a seed"):
        CorrelatedNoise(coefficients(2), 3, lambda round: source)


def test_the_same_noise_every_round_is_refused() -> None:
    with pytest.raises(PlanError, match="make the round a label"):
        CorrelatedNoise(coefficients(2), 3, lambda round: SeededNoise(1, "round"))


@pytest.mark.parametrize("round", [-1, 3])
def test_a_round_beyond_the_horizon_is_refused(round: int) -> None:
    with pytest.raises(PlanError, match=r"horizon is 0\.\.2"):
        CorrelatedNoise(coefficients(2), 3, seeded).of(round)


@pytest.mark.parametrize(("shape", "std"), [((5,), 1.0), ((4,), 2.0)])
def test_other_arrays_or_another_scale_are_refused(shape: tuple[int, ...], std: float) -> None:
    noise = CorrelatedNoise(coefficients(2), 3, seeded)
    noise.of(0).normal((4,), 1.0)
    with pytest.raises(PlanError, match="same arrays, clip and noise multiplier"):
        noise.of(1).normal(shape, std)
    assert noise.of(1).normal((4,), 1.0).shape == (4,)


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_a_bad_scale_or_dtype_is_refused(std: float) -> None:
    noise = CorrelatedNoise(coefficients(2), 3, seeded)
    with pytest.raises(PlanError, match="std is"):
        noise.of(0).normal((4,), std)
    with pytest.raises(PlanError, match="dtype is float16"):
        noise.of(0).normal((4,), 1.0, np.float16)


REFUSED: list[Callable[[], object]] = [
    lambda: coefficients(0),
    lambda: prefix_error(coefficients(2), 0),
    lambda: sensitivity(coefficients(2), 0, 1, 1),
    lambda: sensitivity(coefficients(2), 5, 0, 1),
    lambda: sensitivity(coefficients(2), 5, 1, 0),
    lambda: best_bands(0, 1, 1),
    lambda: CorrelatedNoise(coefficients(2), 0, seeded),
    lambda: CorrelatedNoise(np.array([]), 3, seeded),
    lambda: CorrelatedNoise(np.array([0.0, 1.0]), 3, seeded),
    lambda: sensitivity(np.array([1.0, np.nan]), 3, 1, 1),
    lambda: prefix_error(np.ones((2, 2)), 3),
]


@pytest.mark.parametrize("call", REFUSED)
def test_impossible_numbers_are_refused(call: Callable[[], object]) -> None:
    with pytest.raises(PlanError, match=r"choose it at least 1|use coefficients"):
        call()
