"""What is public about items, as sparse features whose products say how alike two items are."""

import re
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from fedrecall.protocol.errors import CorruptArtefact
from fedrecall.protocol.tensors import pack, unpack

_YEAR = re.compile(r"\((\d{4})\)\s*$")
_WORD = re.compile(r"\w+")
_YEARS = 10.0
"""Years over which the likeness of two items falls to 1 / e."""


def content_features(titles: Sequence[str], categories: Sequence[Sequence[str]]) -> sparse.csr_array | None:
    """Return features [items, terms] of the public catalogue; ``None`` where it has neither categories nor titles.

    Each item has one title and any number of categories; what is unknown is empty.

    A row is up to three parts, each of length 1 where it is known and zero where not, so that the product of two rows
    is the sum of three likenesses from 0 to 1:

    - categories: the cosine of their inverse document frequencies, log(items / items with it);
    - the year that ends a title, as in "Heat (1995)": exp(-years apart / 10);
    - the title's other words: as categories; a word of one title alone says nothing about another.
    """
    words = [set(_WORD.findall(_YEAR.sub("", title).casefold())) for title in titles]
    parts = [
        _documents([set(row) for row in categories], least=1),
        _years([_YEAR.search(title) for title in titles]),
        _documents(words, least=2),
    ]
    known = [part for part in parts if part.nnz]
    return sparse.csr_array(sparse.hstack(known)) if known else None


def pack_features(features: sparse.csr_array) -> bytes:
    """Encode features as bytes that ``unpack_features`` reads."""
    parts = {"data": features.data, "indices": features.indices, "indptr": features.indptr}
    return pack(parts, {"terms": features.shape[1]})


def unpack_features(data: bytes, *, what: str) -> sparse.csr_array:
    """Decode what ``pack_features`` wrote; raises CorruptArtefact for anything else, naming ``what``."""
    parts, header = unpack(data, what=what)
    try:
        shape = (len(parts["indptr"]) - 1, int(header["terms"]))
        found = sparse.csr_array((parts["data"], parts["indices"], parts["indptr"]), shape=shape)
        found.check_format(full_check=True)
    except (KeyError, ValueError, TypeError) as error:
        raise CorruptArtefact(f"{what} holds no features of items ({error}): make the job again") from error
    return found


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
