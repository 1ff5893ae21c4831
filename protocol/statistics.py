"""The statistics of the private start as they travel: bytes and one scale up, what second moments compare down.

A device says a byte an item (popularity), or a byte a pair of items (second moments), times one float32. What it says
has as many bytes whatever its history, and norm 1 at most: the gate holds both on the device, the server checks both.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from fedrecall.protocol.allow_list import SCALE
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.records import Arrays, Comparison

POPULARITY, SECOND_MOMENTS = "popularity", "second_moments"
"""Names of the start's mechanisms, and of the array that each one asks for."""

MAX_COMPARED = 1414
"""Items whose pairs, a byte each, fit into a megabyte."""

LEAST_REACH = 0.01
"""Below it nothing but neighbours is close, and numbers overflow."""

NEGLIGIBLE = 1e-6
"""Share of |K|^2 below which what the projection leaves of K is rounding, not taste: such a history says nothing."""

_UNIT = 1e-12
_WEIGHTS = (1e-30, 1e30)

Schema = Mapping[str, tuple[tuple[int, ...], np.dtype]]
"""Shape and dtype of each array of an update, by name."""


class Statistic(ABC):
    """How one statistic travels and adds up. Arrays are those of ``schema``, and are taken to be so."""

    name: str

    @property
    @abstractmethod
    def schema(self) -> Schema:
        """What an update holds: uint8 codes under the statistic's name, and one float32 scale."""

    @abstractmethod
    def norm(self, arrays: Arrays) -> float:
        """Return the L2 norm of what ``arrays`` add to the sum; infinite for what no device could have made."""

    @abstractmethod
    def decoded(self, arrays: Arrays) -> Float64[np.ndarray, "numbers"]:
        """Return the numbers that ``arrays`` stand for: products of a byte and a float32, hence exact."""

    @abstractmethod
    def summed(self, total: Float64[np.ndarray, "numbers"]) -> np.ndarray:
        """Return the statistic of a sum of ``decoded`` numbers."""

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays of an update."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.schema.values())


@dataclass(frozen=True, kw_only=True, eq=False)
class Popularity(Statistic):
    """How lately a device met each item, a byte an item: 0 for one that it does not have."""

    n_items: int
    name: str = POPULARITY

    @property
    def schema(self) -> Schema:
        """See ``Statistic``."""
        return {self.name: ((self.n_items,), np.dtype(np.uint8)), SCALE: ((), np.dtype(np.float32))}

    def norm(self, arrays: Arrays) -> float:
        """See ``Statistic``."""
        scale = float(arrays[SCALE])
        codes = arrays[self.name].astype(np.float64)
        return scale * math.sqrt(float(codes @ codes)) if 0 <= scale < math.inf else math.inf

    def decoded(self, arrays: Arrays) -> Float64[np.ndarray, "items"]:
        """See ``Statistic``."""
        return _decoded(arrays, self.name)

    def summed(self, total: Float64[np.ndarray, "items"]) -> Float64[np.ndarray, "items"]:
        """See ``Statistic``."""
        return total


@dataclass(frozen=True, kw_only=True, eq=False)
class SecondMoments(Statistic):
    """How close a device's items stood: the upper triangle of K, row by row, a byte a pair; it adds P K P.

    P projects ``comparison.direction`` out. K has zeros on its diagonal, which do not travel.
    """

    comparison: Comparison
    name: str = SECOND_MOMENTS

    @property
    def schema(self) -> Schema:
        """See ``Statistic``."""
        size = len(self.comparison.top)
        return {self.name: ((size * (size - 1) // 2,), np.dtype(np.uint8)), SCALE: ((), np.dtype(np.float32))}

    def norm(self, arrays: Arrays) -> float:
        """See ``Statistic``. Where hardly anything is left of K, no scale makes it a contribution of norm 1."""
        scale = float(arrays[SCALE])
        if not 0 <= scale < math.inf:
            return math.inf
        matrix = self._matrix(arrays[self.name].astype(np.float64))
        whole = float(np.sum(matrix * matrix))
        if whole == 0.0:
            return 0.0
        crossed = matrix @ self.comparison.direction
        square = whole - 2.0 * float(crossed @ crossed) + float(self.comparison.direction @ crossed) ** 2
        # Half of it, so that rounding on another machine than the device's does not decide.
        return scale * math.sqrt(square) if square > NEGLIGIBLE / 2 * whole else math.inf

    def decoded(self, arrays: Arrays) -> Float64[np.ndarray, "pairs"]:
        """See ``Statistic``."""
        return _decoded(arrays, self.name)

    def summed(self, total: Float64[np.ndarray, "pairs"]) -> Float64[np.ndarray, "top top"]:
        """See ``Statistic``. The projection, being linear, is taken once."""
        return projected(self._matrix(total), self.comparison.direction)

    def codes(self, matrix: Float64[np.ndarray, "top top"]) -> UInt8[np.ndarray, "pairs"]:
        """Return the upper triangle of ``matrix``, whole numbers up to 255, as it travels."""
        upper: UInt8[np.ndarray, "pairs"] = matrix[self._upper].astype(np.uint8)
        return upper

    @cached_property
    def _upper(self) -> Bool[np.ndarray, "top top"]:
        size = len(self.comparison.top)
        return np.triu(np.ones((size, size), dtype=bool), 1)

    def _matrix(self, upper: Float64[np.ndarray, "pairs"]) -> Float64[np.ndarray, "top top"]:
        matrix = np.zeros(self._upper.shape)
        matrix[self._upper] = upper
        return matrix + matrix.T


def _decoded(arrays: Arrays, name: str) -> Float64[np.ndarray, "numbers"]:
    numbers: Float64[np.ndarray, "numbers"] = arrays[name].astype(np.float64) * np.float64(arrays[SCALE])
    return numbers


def projected(
    moments: Float64[np.ndarray, "top top"], direction: Float64[np.ndarray, "top"]
) -> Float64[np.ndarray, "top top"]:
    """Return P M P for a symmetric M, where P projects the unit vector ``direction`` out; zeros project nothing out."""
    crossed = moments @ direction
    aside = np.outer(direction, crossed)
    found: Float64[np.ndarray, "top top"] = (
        moments - aside - aside.T + (direction @ crossed) * np.outer(direction, direction)
    )
    return found


def scale_of(norms: np.ndarray) -> Float32[np.ndarray, "*norms"]:
    """Return the scale that makes each of ``norms`` 1, rounded down so that none exceeds it; 0 where a norm is 0."""
    exact = np.divide(1.0, norms, out=np.zeros_like(norms, dtype=np.float64), where=norms > 0)
    scale = exact.astype(np.float32)
    found: Float32[np.ndarray, "*norms"] = np.where(scale > exact, np.nextafter(scale, np.float32(0)), scale)
    return found


def arrays_of(comparison: Comparison) -> dict[str, np.ndarray]:
    """Return ``comparison`` as the arrays of an ask."""
    return {
        "top": np.asarray(comparison.top, dtype=np.int64),
        "weights": np.asarray(comparison.weights, dtype=np.float64),
        "direction": np.asarray(comparison.direction, dtype=np.float64),
        "reach": np.asarray(comparison.reach, dtype=np.float64),
    }


def comparison_of(arrays: Arrays, n_items: int) -> Comparison:
    """Return the comparison that an ask's ``arrays`` hold, over a catalogue of ``n_items``.

    Guarantees: 2 to 1,414 distinct items of the catalogue; weights and reach with which no comparison overflows; a
    direction that is zero or of length 1. A longer or shorter one is no projection: contributions scaled by it would
    have another norm than 1.

    Raises:
        PlanError: anything else, naming the array.
    """
    forms = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
    whole, real = np.dtype(np.int64), np.dtype(np.float64)
    if forms != {"top": (whole, 1), "weights": (real, 1), "direction": (real, 1), "reach": (real, 0)}:
        raise PlanError("the ask's arrays are not those of a comparison: refused")
    top, weights, direction, reach = (arrays[name] for name in ("top", "weights", "direction", "reach"))
    if not 2 <= len(top) <= min(MAX_COMPARED, n_items) or {len(weights), len(direction)} != {len(top)}:
        raise PlanError(f"top names {len(top)} items: compare 2 to {min(MAX_COMPARED, n_items)}, each with its weight")
    if top.min() < 0 or top.max() >= n_items or len(np.unique(top)) != len(top):
        raise PlanError(f"top names an item twice, or outside the catalogue 0..{n_items - 1}: refused")
    if not ((weights >= _WEIGHTS[0]) & (weights <= _WEIGHTS[1])).all():
        raise PlanError(f"weights must lie from {_WEIGHTS[0]:g} to {_WEIGHTS[1]:g}: refused")
    if not (np.isfinite(direction).all() and (not direction.any() or abs(float(direction @ direction) - 1) <= _UNIT)):
        raise PlanError("direction is neither zero nor of length 1: refused")
    if not LEAST_REACH <= float(reach) < math.inf:
        raise PlanError(f"reach is {float(reach)}: choose it finite and from {LEAST_REACH}")
    return Comparison(top=top, weights=weights, direction=direction, reach=float(reach))
