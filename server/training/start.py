"""The private start: from noised popularity and second moments, and public content, to the first item vectors.

Everything here is post-processing of two releases and of public numbers, so it costs no privacy.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float, Int64

from fedrecall.privacy.mechanisms.mechanisms import gaussian_sum, noise_second_moment
from fedrecall.privacy.mechanisms.noise import NoiseSource
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import Arrays, CohortSum, Comparison, Release
from fedrecall.server.config import StartSettings
from fedrecall.server.training.content import Content, extend, with_prior

ITEM_TABLE = "item.id.weight"
_AGE, _PROJECT = "transformer.recency.age.weight", "transformer.recency.project"


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


def compare(popularity: np.ndarray, count: int, mechanism: Mechanism, *, exponent: float, reach: float) -> Comparison:
    """Choose what second moments compare, from the released popularity alone.

    Args:
        popularity: released counts of all items.
        count: how many items are compared: the most popular ones.
        mechanism: of the popularity; counts below three deviations of its noise are taken as that.
        exponent: an item weighs its popularity to the power of minus this.
        reach: as in ``Comparison``.
    """
    top = popular_items(popularity, count)
    noise = mechanism.noise_multiplier * (mechanism.clip_norm or 0.0)
    weights = np.maximum(popularity[top], max(3.0 * noise, 1e-6)) ** -exponent
    direction = np.maximum(popularity[top], 0.0) * weights
    norm = float(np.linalg.norm(direction))
    return Comparison(top=top, weights=weights, direction=direction / norm if norm > 0 else direction, reach=reach)


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemVectors:
    """The first item vectors.

    Attributes:
        vectors: [items, dim]; column 0 is popularity, the others are taste.
        directions: how many taste columns are in use; the others are zero.
    """

    vectors: Float[np.ndarray, "items dim"]
    directions: int


def first_item_vectors(
    popularity: np.ndarray,
    moments: np.ndarray | None,
    compared: Comparison,
    mechanism: Mechanism | None,
    dim: int,
    *,
    power: float,
    cut: float,
    content: Content | None = None,
) -> ItemVectors:
    """Turn the two releases, and what is public about items, into item vectors of width ``dim``.

    Taste: the leading eigenvectors of the noised matrix, to which ``content`` adds a prior, each times
    (eigenvalue - cut x edge) ^ power. The edge, 2 s sqrt(M), is the largest eigenvalue of the noise alone, of standard
    deviation s off the diagonal of an M x M matrix (Wigner). A factor of the matrix would have power 1/2; less evens
    the directions out, as the inverse in a linear autoencoder does. Directions below the edge still rank better than
    none, since a query sums over many items: the cut is a choice made on validation, not the edge itself. The taste of
    the compared items has a mean squared norm of 1; other items get theirs from ``content``, or none.

    Popularity: log(1 + released count), from 0 to 1.

    Args:
        popularity: released counts of all items.
        moments: released second moments over the first items of ``compared``; ``None`` for a start without them.
        compared: the items with a taste of their own, and the direction that popularity has over them.
        mechanism: of the second moments; its noise sets s.
        dim: width of item vectors, at least 2.
        power: of what is left of an eigenvalue.
        cut: share of the edge that is taken off every eigenvalue; what falls below 0 is dropped.
        content: what is public about items.
    """
    vectors = np.zeros((len(popularity), dim))
    logarithm = np.log1p(np.maximum(popularity, 0.0))
    vectors[:, 0] = logarithm / max(float(logarithm.max(initial=0.0)), 1e-12)
    top, edge = compared.top, 0.0
    if moments is not None and mechanism is not None:
        edge = 2.0 * mechanism.noise_multiplier * (mechanism.clip_norm or 0.0) * math.sqrt(len(moments) / 2)
    if content is not None:
        moments = with_prior(moments, content, top, compared.direction, edge)
    if moments is None or not len(top):
        return ItemVectors(vectors=vectors, directions=0)
    rank = min(dim - 1, len(top))
    values, basis = scipy.linalg.eigh(moments, subset_by_index=(len(top) - rank, len(top) - 1))
    values, basis = values[::-1], basis[:, ::-1]
    left = values - cut * edge
    # Without noise, what rounding leaves of a zero is no direction.
    kept = left > 1e-9 * max(float(values[0]), 0.0)
    # The sign of an eigenvector is arbitrary: fix it, so that every machine releases the same table.
    basis = basis * np.where(np.abs(basis.max(axis=0)) >= np.abs(basis.min(axis=0)), 1.0, -1.0)
    taste = basis * np.where(kept, np.maximum(left, 0.0), 0.0) ** power * kept
    size = math.sqrt(float(np.mean(np.sum(taste**2, axis=1))))
    if size > 0:
        vectors[top, 1 : rank + 1] = taste / size
        if content is not None:
            extend(vectors[:, 1:], content, top)
    return ItemVectors(vectors=vectors, directions=int(kept.sum()))


def first_model(arrays: Arrays, first: ItemVectors, settings: StartSettings) -> dict[str, np.ndarray]:
    """Return ``arrays`` with the first item vectors, and a context that is what its latest events are.

    An event weighs ``decay`` to the power of its age; a context's taste is ``scale`` times the mean of the events and
    of ``prior`` events that say nothing, and its popularity ``scale`` times ``popularity``, whatever the history.
    """
    window, dim = len(arrays[_AGE]) - 1, first.vectors.shape[1]
    ages = np.append(np.arange(window) * np.log(settings.decay), np.log(settings.prior))
    project = np.eye(dim, dtype=np.float32) * np.float32(settings.scale)
    project[0, 0] = 0.0  # a context's popularity is the bias alone
    bias = np.array(arrays[f"{_PROJECT}.bias"])
    bias[0] = settings.scale * settings.popularity
    return {
        **arrays,
        ITEM_TABLE: first.vectors.astype(np.float32),
        _AGE: ages[:, None].astype(np.float32),
        f"{_PROJECT}.weight": project,
        f"{_PROJECT}.bias": bias,
    }
