"""What is public about items, as sparse features whose products say how alike two items are."""

import re

import numpy as np
from scipy import sparse

from fedrecall.simulations.data.dataset import Catalogue

_YEAR = re.compile(r"\((\d{4})\)\s*$")
_WORD = re.compile(r"\w+")
_YEARS = 10.0
"""Years over which the likeness of two items falls to 1 / e."""


def content_features(catalogue: Catalogue) -> sparse.csr_array | None:
    """Return features [items, terms] of the public catalogue; ``None`` where it has neither categories nor titles.

    A row is up to three parts, each of length 1 where it is known and zero where not, so that the product of two rows
    is the sum of three likenesses from 0 to 1:

    - categories: the cosine of their inverse document frequencies, log(items / items with it);
    - the year that ends a title, as in "Heat (1995)": exp(-years apart / 10);
    - the title's other words: as categories; a word of one title alone says nothing about another.
    """
    titles = [_YEAR.sub("", title).casefold() for title in catalogue.titles]
    parts = [
        _documents([set(row) for row in catalogue.categories], least=1),
        _years([_YEAR.search(title) for title in catalogue.titles]),
        _documents([set(_WORD.findall(title)) for title in titles], least=2),
    ]
    known = [part for part in parts if part.nnz]
    return sparse.csr_array(sparse.hstack(known)) if known else None


def _documents(documents: list[set[str]], *, least: int) -> sparse.csr_array:
    """Return unit rows of inverse document frequencies; terms of fewer than ``least`` documents are left out."""
    counts: dict[str, int] = {}
    for document in documents:
        for term in document:
            counts[term] = counts.get(term, 0) + 1
    place = {term: i for i, term in enumerate(sorted(t for t, n in counts.items() if n >= least))}
    cells = [(row, place[term]) for row, document in enumerate(documents) for term in sorted(document & place.keys())]
    weight = np.array([np.log(len(documents) / counts[term]) for term in place])
    rows, columns = np.array(cells, dtype=np.int64).reshape(-1, 2).T
    matrix = sparse.csr_array((weight[columns], (rows, columns)), shape=(len(documents), len(place)))
    matrix.eliminate_zeros()
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.csr_array(sparse.diags_array(1.0 / np.where(lengths > 0, lengths, 1.0)) @ matrix)


def _years(found: list[re.Match[str] | None]) -> sparse.csr_array:
    """Return rows whose products are exp(-years apart / 10): those of the kernel's Cholesky factor."""
    rows = [row for row, match in enumerate(found) if match]
    years = np.array([int(match[1]) for match in found if match], dtype=np.float64)
    distinct, index = np.unique(years, return_inverse=True)
    factor = (
        np.linalg.cholesky(np.exp(-np.abs(distinct[:, None] - distinct) / _YEARS)) if len(rows) else np.zeros((0, 0))
    )
    matrix = sparse.lil_array((len(found), len(distinct)))
    matrix[rows] = factor[index]
    return sparse.csr_array(matrix)
