"""The private start: from noised popularity and second moments to the first item vectors.

Everything here is post-processing of two releases and of public numbers, so it costs no privacy.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from fedrecall.privacy.mechanisms import gaussian_sum, noise_second_moment
from fedrecall.privacy.noise import NoiseSource
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import CohortSum, Release

_TRACY_WIDOM = 2.02
"""99 % quantile of the fluctuation of a symmetric noise matrix's largest eigenvalue, in units of M^(-2/3) s sqrt(M)."""


def release_popularity(cohort: CohortSum, mechanism: Mechanism, noise: NoiseSource) -> Release:
    """Noise the popularity sum. Charge the ledger before."""
    return Release(round=0, mechanism=mechanism.name, arrays=gaussian_sum(cohort.arrays, mechanism, noise))


def release_second_moments(cohort: CohortSum, mechanism: Mechanism, noise: NoiseSource) -> Release:
    """Noise the sum of second moments by the isometry of symmetric matrices. Charge the ledger before."""
    noised = noise_second_moment(cohort.arrays["second_moments"], mechanism, noise)
    return Release(round=0, mechanism=mechanism.name, arrays={"second_moments": noised})


def popular_items(popularity: np.ndarray, count: int) -> Int64[np.ndarray, "top"]:
    """Return the ``count`` items with the highest released popularity, highest first; ties by item number."""
    return np.argsort(-popularity, kind="stable")[:count]


def popularity_direction(popularity: np.ndarray, top: np.ndarray) -> Float64[np.ndarray, "top"]:
    """Return released popularity over ``top`` as a unit vector; zeros where nothing is above zero."""
    direction: Float64[np.ndarray, "top"] = np.maximum(popularity[top], 0.0)
    norm = float(np.linalg.norm(direction))
    return np.asarray(direction / norm) if norm > 0 else direction


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemVectors:
    """The first item vectors.

    Attributes:
        vectors: [items, dim]; column 0 is popularity, the others are taste. Items beyond the top have no taste yet.
        directions: how many taste columns carry more signal than noise; the others are zero.
    """

    vectors: Float[np.ndarray, "items dim"]
    directions: int


def first_item_vectors(
    popularity: np.ndarray, moments: np.ndarray | None, top: np.ndarray, mechanism: Mechanism | None, dim: int
) -> ItemVectors:
    """Turn the two releases into item vectors of width ``dim``.

    Taste: the leading eigenvectors of the noised matrix, each times sqrt(signal eigenvalue x squared cosine to the
    true direction), from the spiked Wigner model (Benaych-Georges and Nadakuditi 2011, section 3.1): with noise of
    standard deviation s off the diagonal of an M x M matrix, an eigenvalue y above 2 s sqrt(M) stems from a signal
    l = (y + sqrt(y^2 - 4 s^2 M)) / 2, and its eigenvector keeps the squared cosine 1 - s^2 M / l^2. What lies below
    is noise and is dropped, and so is what noise alone reaches by chance in more than 1 % of draws (Tracy and Widom
    1996). The top items' taste has a mean squared norm of 1.

    Popularity: log(1 + released count), from 0 to 1.

    Args:
        popularity: released counts of all items.
        moments: released second moments over ``top``; ``None`` for a start from popularity alone.
        top: items of ``moments``.
        mechanism: of the second moments; its noise sets s.
        dim: width of item vectors, at least 2.
    """
    vectors = np.zeros((len(popularity), dim))
    logarithm = np.log1p(np.maximum(popularity, 0.0))
    vectors[:, 0] = logarithm / max(float(logarithm.max(initial=0.0)), 1e-12)
    if moments is None or mechanism is None or not len(top):
        return ItemVectors(vectors=vectors, directions=0)
    values, basis = np.linalg.eigh(moments)
    rank = min(dim - 1, len(top))
    values, basis = values[::-1][:rank], basis[:, ::-1][:, :rank]
    variance = (mechanism.noise_multiplier * (mechanism.clip_norm or 0.0)) ** 2 / 2 * len(top)
    signal = np.maximum(values, 0.0)
    kept = signal > (2.0 + _TRACY_WIDOM * len(top) ** (-2 / 3)) * math.sqrt(variance)
    true = (signal + np.sqrt(np.maximum(signal**2 - 4.0 * variance, 0.0))) / 2.0
    cosine = np.where(kept, 1.0 - variance / np.maximum(true, 1e-12) ** 2, 0.0)
    # The sign of an eigenvector is arbitrary: fix it, so that every machine releases the same table.
    basis = basis * np.where(np.abs(basis.max(axis=0)) >= np.abs(basis.min(axis=0)), 1.0, -1.0)
    taste = basis * np.sqrt(np.maximum(true * cosine, 0.0))
    size = math.sqrt(float(np.mean(np.sum(taste**2, axis=1))))
    if size > 0:
        vectors[top, 1 : rank + 1] = taste / size
    return ItemVectors(vectors=vectors, directions=int(kept.sum()))
