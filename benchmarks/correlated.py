"""Prefix-sum error of correlated noise at one epsilon, as a fraction of independent noise's, beside its rivals.

`rms` and `worst` are over rounds; `half` is rms with half the bands, `8` with eight. Rivals, rms at the same epsilon:

bsr      the banded square root with as many bands as the gap has rounds (Kalinin and Lampert 2024, arXiv 2405.13763)
optimum  the best Toeplitz strategy with as many bands as the gap, found numerically, up to 256 steps
bound    no factorisation at all is better: root of k times the nuclear norm of the prefix sums over n

`one participation` gives errors themselves, not fractions. `worst`: of all bands, between `least`, which no
factorisation gets below, (2 + ln((2n + 1) / 3)) / pi (Matousek, Nikolov and Talwar 2020), and the `limit` of the square
root of Fichtenberger, Henzinger and Upadhyay 2023, (ln n + Euler's constant + 4 ln 2) / pi. `rms`: of the best bands,
beside the best known to be reached, 0.748 + ln(n) / pi + o(1) (arXiv 2509.14334, of 2025).

    python benchmarks/correlated.py
"""

import argparse
import json
import math
import sys
import time

import numpy as np
from scipy.optimize import minimize
from scipy.signal import fftconvolve, lfilter

from fedrecall.privacy.mechanisms.correlated import CorrelatedNoise, best_bands, coefficients, prefix_error, sensitivity
from fedrecall.privacy.mechanisms.noise import NoiseSource, SeededNoise

STEPS = (64, 256, 1024, 2048)
NUMERIC = 256
ROUND_VALUES = 150_000  # about the shared weights of the default model on 3,700 items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    options = parser.parse_args()
    rows = []
    for steps in STEPS:
        for participations, min_gap in ((1, steps), (4, steps // 4), (4, steps // 16), (16, steps // 16)):
            rows.append(measure(steps, participations, min_gap))
            print(f"{steps} steps, {participations} participations, gap {min_gap}", file=sys.stderr)
    single = [one_participation(steps) for steps in STEPS]
    cost = round_cost()
    if options.format == "json":
        print(json.dumps({"factors": rows, "one_participation": single, "cost": cost}, allow_nan=False))
        return
    for title, table in (("factors", rows), ("one participation", single), ("cost", [cost])):
        print(title)
        print(" ".join(f"{name:>11}" for name in table[0]))
        for row in table:
            print(" ".join(f"{'-' if value is None else value:>11}" for value in row.values()))


def measure(steps: int, participations: int, min_gap: int) -> dict[str, float | None]:
    bands = best_bands(steps, participations, min_gap)
    independent = errors(coefficients(1), steps, participations, min_gap)

    def factor(inverse: np.ndarray) -> float:
        return errors(inverse, steps, participations, min_gap)[0] / independent[0]

    root_k = math.sqrt(participations)
    banded = square_root_series(min_gap)
    bsr = root_k * float(np.linalg.norm(banded)) * prefix_error(series_inverse(banded, steps), steps)[0]
    numeric = root_k * optimum(steps, min_gap) / independent[0] if steps <= NUMERIC else None
    return {
        "steps": steps,
        "k": participations,
        "gap": min_gap,
        "bands": bands,
        "rms": digits(factor(coefficients(bands))),
        "worst": digits(errors(coefficients(bands), steps, participations, min_gap)[1] / independent[1]),
        "half": digits(factor(coefficients(max(1, bands // 2)))),
        "8": digits(factor(coefficients(8))),
        "bsr": digits(bsr / independent[0]),
        "optimum": digits(numeric),
        "bound": digits(root_k * nuclear_norm(steps) / steps / independent[0]),
    }


def errors(inverse: np.ndarray, steps: int, participations: int, min_gap: int) -> tuple[float, float]:
    scale = sensitivity(inverse, steps, participations, min_gap)
    rms, worst = prefix_error(inverse, steps)
    return scale * rms, scale * worst


def one_participation(steps: int) -> dict[str, float | None]:
    return {
        "steps": steps,
        "least": digits((2 + math.log((2 * steps + 1) / 3)) / math.pi),
        "worst": digits(errors(coefficients(steps), steps, 1, steps)[1]),
        "limit": digits((math.log(steps) + np.euler_gamma + 4 * math.log(2)) / math.pi),
        "rms": digits(errors(coefficients(best_bands(steps, 1, steps)), steps, 1, steps)[0]),
        "best known": digits(0.748 + math.log(steps) / math.pi),
    }


def optimum(steps: int, bands: int) -> float:
    """Return the least rms error times column norm over strategies c = 1, c_1, ..., c_(bands-1).

    With no more bands than the gap has rounds, columns of one device do not overlap, whatever their signs. The
    weights w of the prefix sums are the series of 1 / ((1 - v) c(v)), whose derivative by c_j is -v^j w / c.
    """
    counts = np.arange(steps, 0, -1) / steps

    def loss(tail: np.ndarray) -> tuple[float, np.ndarray]:
        c = np.concatenate([[1.0], tail])
        inverse = series_inverse(c, steps)
        weights = np.cumsum(inverse)
        squared = float(counts @ weights**2)
        slope = fftconvolve(weights, inverse)[:steps]
        shifted = np.array([(counts[j:] * weights[j:]) @ slope[: steps - j] for j in range(1, bands)])
        gradient = -2 * shifted / squared + 2 * tail / (c @ c)
        return math.log(squared) + math.log(c @ c), gradient

    found = minimize(loss, square_root_series(bands)[1:], jac=True, method="L-BFGS-B", options={"maxiter": 5000})
    return math.exp(found.fun / 2)


def square_root_series(bands: int) -> np.ndarray:
    order = np.arange(1, bands)
    return np.cumprod(np.concatenate([[1.0], (2 * order - 1) / (2 * order)]))


def series_inverse(series: np.ndarray, steps: int) -> np.ndarray:
    impulse = np.zeros(steps)
    impulse[0] = 1.0
    return np.asarray(lfilter([1.0], series, impulse))


def nuclear_norm(steps: int) -> float:
    return float(np.sum(0.5 / np.sin((2 * np.arange(1, steps + 1) - 1) * math.pi / (4 * steps + 2))))


def round_cost() -> dict[str, float | None]:
    """Return milliseconds a round for the noise of 150,000 values: best of 20 rounds, once the bands are full."""

    def draw(round: int) -> NoiseSource:
        return SeededNoise(0, "benchmark", round)

    def best(of: CorrelatedNoise, first: int) -> float:
        times = []
        for round in range(first, first + 20):
            begin = time.perf_counter()
            of.of(round).normal((ROUND_VALUES,), 1.0)
            times.append(time.perf_counter() - begin)
        return 1000 * min(times[1:])

    return {
        f"{bands} bands ms": digits(best(CorrelatedNoise(coefficients(bands), 200, draw), bands))
        for bands in (1, 8, 32, 100)
    }


def digits(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    main()
