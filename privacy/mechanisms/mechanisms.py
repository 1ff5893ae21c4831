"""Clipping, contributions of known sensitivity, and Gaussian noise on their sums: pure functions on arrays.

One unit moves a clipped sum by at most ``clip_norm`` in joint L2 norm when it is added or removed (twice that
when it is replaced); the noise in the sum has a standard deviation of noise_multiplier * clip_norm in every
coordinate, touched or not (Dwork and Roth 2014, appendix A; Balle and Wang 2018). Clip the noiseless signal,
then noise it, once.

What is released is rounded to a grid of at most std / 2^20, exactly (``fedrecall.privacy.mechanisms.noise``): the
lowest bits of a double plus a double of noise would tell which sums are possible (Mironov 2012). Rounding follows the
noise, so it costs no privacy.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

from fedrecall.privacy.mechanisms.noise import NoiseSource
from fedrecall.protocol.errors import PlanError, UpdateError
from fedrecall.protocol.plan import Mechanism

_WITHIN = 1 + 1e-9
"""What rounding in float64 may add to a bound, relative to it."""

FloatArrays = dict[str, npt.NDArray[np.floating]]


def clip_joint(arrays: Mapping[str, np.ndarray], clip_norm: float) -> tuple[FloatArrays, float]:
    """Scale ``arrays`` so that their joint L2 norm is at most ``clip_norm`` (1 + 1e-9); shorter ones stay.

    Float64 and integers come back as float64, float32 and float16 as float32: the bound holds for what is
    returned. An invalid input (NaN, infinity, a norm beyond float64) becomes all zeros, since a refusal would
    tell something too. Empty and 0-d arrays are fine.

    Returns:
        The clipped arrays, and the norm before clipping: private; infinity for an invalid input.

    Raises:
        PlanError: ``clip_norm`` is not a finite number above 0.
        UpdateError: an array holds no real numbers.
    """
    if not (math.isfinite(clip_norm) and clip_norm > 0):
        raise PlanError(f"clip_norm is {clip_norm}: choose it finite and above 0")
    kinds = {name: _kind(name, array) for name, array in arrays.items()}
    wide = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    largest = _largest(wide)
    norm = _norm(wide, largest)
    if math.isfinite(norm):
        # Dividing by the largest entry first keeps the precision of 1e300 and of 1e-300.
        # What is scaled ends a little within the bound, so that rounding to its own precision does not lift it above.
        shrunk = clip_norm * (1 - 2.0**-23 if np.float32 in kinds.values() else 1.0)
        unit, scale = (1.0, 1.0) if norm <= clip_norm else (largest, shrunk / (norm / largest))
        clipped: FloatArrays = {name: np.asarray(a / unit * scale, dtype=kinds[name]) for name, a in wide.items()}
        widened = {name: a.astype(np.float64) for name, a in clipped.items()}
        if _norm(widened, min(largest, clip_norm)) <= clip_norm * _WITHIN:
            return clipped, norm
    return {name: np.zeros(a.shape, dtype=kinds[name]) for name, a in wide.items()}, norm


def joint_norm(arrays: Mapping[str, np.ndarray]) -> float:
    """Return the L2 norm of all ``arrays`` together; infinite for NaN, infinity, or a norm beyond float64."""
    wide = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
    return _norm(wide, _largest(wide))


def gaussian_sum(sums: Mapping[str, np.ndarray], mechanism: Mechanism, noise: NoiseSource) -> FloatArrays:
    """Return the sums of clipped contributions plus the mechanism's noise, in float64.

    Sensitivity ``mechanism.clip_norm``, over all arrays together. Arrays are noised in the order of their
    names, so that a replay draws the same noise; 0-d and empty ones are fine. Without noise, the sums.

    Raises:
        UpdateError: a sum holds NaN, infinity, no real numbers, or dwarfs its noise (2^50 times and more).
    """
    std = _std(mechanism)
    return {name: _noised(name, sums[name], std, noise) for name in sorted(sums)}


def noise_second_moment(
    sums: Float64[np.ndarray, "items items"], mechanism: Mechanism, noise: NoiseSource
) -> Float64[np.ndarray, "items items"]:
    """Return the noised sum of symmetric contributions of Frobenius norm at most 1, symmetric itself.

    A symmetric matrix has the norm of the vector of its diagonal and sqrt(2) times its upper triangle.
    Noise of standard deviation ``noise_multiplier`` (1 / mu for one release) on that vector is noise of
    that size on the diagonal and of 1/sqrt(2) times it beside the diagonal, mirrored.

    Raises:
        PlanError: there is noise and ``clip_norm`` is not 1.
        UpdateError: the sum is not finite, square and symmetric.
    """
    _require_unit_clip(mechanism)
    if sums.ndim != 2 or sums.shape[0] != sums.shape[1]:
        raise UpdateError(f"second moments have shape {sums.shape}: they need a square matrix")
    std = _std(mechanism)
    diagonal = _noised(mechanism.name, np.diagonal(sums), std, noise)
    if not np.allclose(sums, sums.T, rtol=1e-9, atol=1e-9):
        raise UpdateError("second moments are not symmetric: sum y y^T over devices")
    upper = np.triu_indices(len(sums), k=1)
    out = np.zeros(sums.shape)
    out[upper] = _noised(mechanism.name, sums[upper], std / math.sqrt(2), noise)
    out += out.T
    np.fill_diagonal(out, diagonal)
    return out


def _noised(name: str, array: np.ndarray, std: float, noise: NoiseSource) -> npt.NDArray[np.float64]:
    _kind(name, array)
    wide = np.array(array, dtype=np.float64)
    if not np.all(np.isfinite(wide)):
        raise UpdateError(f"the sum {name!r} is not finite: an invalid contribution must become zero before it")
    if std == 0:
        return wide
    if np.any(np.abs(wide) > std * 2.0**50):
        raise UpdateError(f"the sum {name!r} exceeds 2^50 times its noise, which would vanish in rounding: clip it")
    return noise.added(wide, std)


def _std(mechanism: Mechanism) -> float:
    return mechanism.noise_multiplier * (mechanism.clip_norm or 0.0)


def _require_unit_clip(mechanism: Mechanism) -> None:
    if mechanism.noise_multiplier > 0 and mechanism.clip_norm != 1.0:
        name, clip_norm = mechanism.name, mechanism.clip_norm
        raise PlanError(f"{name}.clip_norm is {clip_norm}: its contributions have norm at most 1, make it 1")


def _kind(name: str, array: np.ndarray) -> type[np.floating]:
    dtype = np.asarray(array).dtype
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise UpdateError(f"array {name!r} has dtype {dtype}: send real numbers of at most 64 bits")
    return np.float32 if dtype in (np.dtype(np.float16), np.dtype(np.float32)) else np.float64


def _largest(arrays: Mapping[str, npt.NDArray[np.float64]]) -> float:
    # numpy's maximum, unlike Python's, is NaN wherever one entry is.
    return float(np.max([np.max(np.abs(a), initial=0.0) for a in arrays.values()], initial=0.0))


def _norm(arrays: Mapping[str, npt.NDArray[np.float64]], largest: float) -> float:
    """Return the joint L2 norm without overflow or underflow; infinity for NaN and infinity."""
    if not math.isfinite(largest):
        return math.inf
    if largest == 0.0:
        return 0.0
    norm = largest * math.sqrt(sum(float(np.sum(np.square(a / largest))) for a in arrays.values()))
    return norm if math.isfinite(norm) else math.inf
