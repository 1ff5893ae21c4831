"""Public content as a prior of the first item vectors: which items go together before any device has said so.

Content is public, so nothing here is charged; it is added to what was released, after the noise.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float64, Int64
from scipy import sparse

_RIDGE = 1.0
_EXTENDED = 0.7
"""Share of a regressed vector that an item beyond the compared ones gets. Both were chosen on validation."""
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Content:
    """What is public about items.

    Attributes:
        features: [items, terms], sparse; the product of two rows says how alike the items are.
        items: how many of the most popular items get vectors of their own; the others follow by regression.
        weight: of the likeness beside released second moments: its leading eigenvalue in edges of their noise.
    """

    features: sparse.csr_array
    items: int
    weight: float

    def likeness(
        self, rows: Int64[np.ndarray, "rows"], columns: Int64[np.ndarray, "cols"]
    ) -> Float64[np.ndarray, "rows cols"]:
        """Return how alike items are."""
        found: Float64[np.ndarray, "rows cols"] = (self.features[rows] @ self.features[columns].T).toarray()
        return found


def with_prior(
    moments: Float64[np.ndarray, "moments moments"] | None,
    content: Content,
    top: Int64[np.ndarray, "top"],
    direction: Float64[np.ndarray, "top"],
    edge: float,
) -> Float64[np.ndarray, "top top"]:
    """Return second moments plus the likeness of the items ``top``, popularity projected out of it.

    The sum is a posterior mean of the simplest kind: where devices said little, items go together as their content
    does. What was released covers the first items of ``top`` and is zero elsewhere. The likeness is scaled so that
    over those its leading eigenvalue is ``content.weight`` edges; without released moments it stands alone.
    """
    likeness = content.likeness(top, top)
    crossed = likeness @ direction
    aside = np.outer(direction, crossed)
    likeness += (direction @ crossed) * np.outer(direction, direction) - aside - aside.T
    if moments is None:
        return likeness
    size = len(moments)
    leading = float(scipy.linalg.eigvalsh(likeness[:size, :size], subset_by_index=(size - 1, size - 1))[0])
    likeness *= content.weight * edge / leading if leading > 0 else 0.0
    likeness[:size, :size] += moments
    return likeness


def extend(vectors: Float64[np.ndarray, "items dim"], content: Content, top: Int64[np.ndarray, "top"]) -> None:
    """Fill the rows of ``vectors`` outside ``top`` by kernel ridge regression on content, in place."""
    rest = np.setdiff1d(np.arange(len(vectors)), top)
    kernel = content.likeness(top, top)
    kernel[np.diag_indices(len(top))] += _RIDGE
    solved = _EXTENDED * scipy.linalg.solve(kernel, vectors[top], assume_a="pos")
    for begin in range(0, len(rest), _CHUNK):
        some = rest[begin : begin + _CHUNK]
        vectors[some] = content.likeness(some, top) @ solved
