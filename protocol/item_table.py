"""The portable item table: item vectors as int8 codes with one fp16 scale a row, and their exact search.

A device needs nothing else to recall: no index library, no network. At 64 dimensions an item costs 66 bytes
plus its id. The headline figures of every report come from this search over the released table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int8, Int32, Integer

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.files import read_bounded, write_atomic
from fedrecall.protocol.tensors import pack, unpack

MAX_BYTES = 8 << 30
MAX_DIM = 4096
MAX_ITEMS = 100_000_000
_FORMAT = "item_table/1"
_LEVELS = 127
_BLOCK = 8192  # rows that are widened to float32 at a time
_SCORES = 1 << 24  # scores that are held at a time


@dataclass(frozen=True, kw_only=True, eq=False)
class ItemTable:
    """Item vectors of one release. Vector ``i`` is ``codes[i] * scales[i]`` and belongs to ``ids[i]``.

    Build it with ``from_vectors``, ``from_bytes`` or ``load``, which check what they are given.
    """

    codes: Int8[np.ndarray, "items dim"]
    scales: Float16[np.ndarray, "items"]
    ids: tuple[str, ...]

    @classmethod
    def from_vectors(cls, vectors: Float32[np.ndarray, "items dim"], ids: Sequence[str]) -> "ItemTable":
        """Quantise ``vectors``. A coordinate moves by at most half its row's scale.

        The scale is the row's largest magnitude / 127, rounded up to fp16, so that no code is ever cut off.

        Raises:
            FedrecallError: no item, ids missing, repeated or not encodable, a value that is not finite or too
                big.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or not 1 <= vectors.shape[1] <= MAX_DIM or not 1 <= len(vectors) <= MAX_ITEMS:
            raise FedrecallError(f"item vectors have shape {vectors.shape}: give (items, 1..{MAX_DIM}), items >= 1")
        if problem := _ids_problem(ids, len(vectors)):
            raise FedrecallError(problem)
        peak = np.abs(vectors).max(axis=1)
        limit = float(np.finfo(np.float16).max) * _LEVELS
        if not peak.max() <= limit:
            bad = int(np.flatnonzero(~(peak <= limit))[0])
            raise FedrecallError(f"the vector of item {ids[bad]!r} reaches {peak[bad]}: keep it finite, <= {limit}")
        exact = peak / np.float32(_LEVELS)
        scales = exact.astype(np.float16)
        low = scales.astype(np.float32) < exact
        scales[low] = np.nextafter(scales[low], np.float16(np.inf))
        divisor = np.where(scales > 0, scales, np.float16(1)).astype(np.float32)[:, None]
        return cls(codes=np.rint(vectors / divisor).astype(np.int8), scales=scales, ids=tuple(ids))

    @classmethod
    def from_bytes(cls, data: bytes, *, what: str = "the item table") -> "ItemTable":
        """Decode what ``to_bytes`` wrote; any other bytes raise CorruptArtefact naming ``what``.

        Well-formed bytes are not yet the right ones: verify a manifest's hash for that.
        """
        arrays, header = unpack(data, what=what)
        problem = _table_problem(arrays, header)
        ids: tuple[str, ...] = ()
        if not problem:
            blob, ends = arrays["ids"].tobytes(), arrays["id_ends"].tolist()
            try:
                ids = tuple(blob[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True))
                problem = _ids_problem(ids, len(ends))
            except UnicodeDecodeError as error:
                problem = f"an id is not UTF-8 ({error})"
        if problem:
            raise CorruptArtefact(f"{what}: {problem}; fetch it again")
        return cls(codes=arrays["codes"], scales=arrays["scales"], ids=ids)

    @classmethod
    def load(cls, path: Path) -> "ItemTable":
        """Read an item table; CorruptArtefact when it is missing, too long or malformed in any way."""
        return cls.from_bytes(read_bounded(path, max_bytes=MAX_BYTES), what=str(path))

    def to_bytes(self) -> bytes:
        """Encode the table; equal tables give equal bytes."""
        encoded = [text.encode() for text in self.ids]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.uint64)
        if int(ends[-1]) > np.iinfo(np.uint32).max:
            raise FedrecallError(f"the item ids take {int(ends[-1])} bytes, at most 4 GiB fit: shorten them")
        arrays = {
            "codes": self.codes,
            "scales": self.scales,
            "ids": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "id_ends": ends.astype(np.uint32),
        }
        return pack(arrays, {"format": _FORMAT})

    def save(self, path: Path) -> None:
        """Write the table atomically; FedrecallError when it cannot be written."""
        write_atomic(path, self.to_bytes())

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.codes)

    @property
    def dim(self) -> int:
        """Length of an item vector."""
        return int(self.codes.shape[1])

    def vectors(self) -> Float32[np.ndarray, "items dim"]:
        """Return the dequantised vectors; the product of code and scale is exact in float32."""
        return _dequantise(self.codes, self.scales)

    def search(
        self,
        queries: Float32[np.ndarray, "queries dim"],
        k: int,
        exclude: Sequence[Integer[np.ndarray, "excluded"]] | None = None,
    ) -> tuple[Int32[np.ndarray, "queries k"], Float32[np.ndarray, "queries k"]]:
        """Return the ``k`` items with the highest inner product for each query, best first, and their scores.

        Exact over the dequantised vectors: a float32 scan with a proven error bound keeps every candidate,
        and the candidates are scored in float64. So a row depends neither on the batch it is asked in nor on
        threads, and ties (equal float64 scores, as of equal vectors) go to the lower index. Rows with fewer
        than ``k`` items left end in item -1 with score -inf. ``exclude`` holds one array of item indices a
        query.

        Raises:
            FedrecallError: wrong shapes, ``k`` below 1, a query that is not finite, an excluded item out of
                range.
        """
        queries = np.asarray(queries, dtype=np.float32)
        self._check(queries, k, exclude)
        items = np.full((len(queries), k), -1, dtype=np.int32)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        # A positive factor does not change the order; without it a huge query would overflow the float32
        # scan.
        size = np.abs(queries, dtype=np.float64).max(axis=1, initial=0.0)
        unit = queries / np.where(size > 0, size, 1.0)[:, None]
        margin = 2 * self._error_bound(unit)
        batch = max(1, _SCORES // len(self))
        for start in range(0, len(queries), batch):
            scan = self._scan(unit[start : start + batch].astype(np.float32))
            for row, approximate in enumerate(scan, start=start):
                if exclude is not None:
                    approximate[np.asarray(exclude[row], dtype=np.int64)] = -np.inf
                best, exact = self._best(approximate, unit[row], k, margin[row])
                items[row, : len(best)] = best
                with np.errstate(over="ignore"):
                    scores[row, : len(best)] = (exact * size[row]).astype(np.float32)
        return items, scores

    def _check(self, queries: np.ndarray, k: int, exclude: Sequence[np.ndarray] | None) -> None:
        """Refuse requests that ``search`` cannot answer."""
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise FedrecallError(f"queries have shape {queries.shape}: this table wants (queries, {self.dim})")
        if k < 1:
            raise FedrecallError(f"k is {k}: ask for at least 1 item")
        if not np.isfinite(queries).all():
            raise FedrecallError("a query is not finite: check the user tower and the context that made it")
        if exclude is None:
            return
        if len(exclude) != len(queries):
            raise FedrecallError(f"exclude has {len(exclude)} rows for {len(queries)} queries: give one each")
        for row in exclude:
            if len(row) and not 0 <= int(np.min(row)) <= int(np.max(row)) < len(self):
                raise FedrecallError(f"exclude holds an item outside 0..{len(self) - 1}")

    def _scan(self, unit: np.ndarray) -> Float32[np.ndarray, "batch items"]:
        """Score all items in float32, block by block."""
        scores = np.empty((len(unit), len(self)), dtype=np.float32)
        for low in range(0, len(self), _BLOCK):
            rows = slice(low, min(low + _BLOCK, len(self)))
            np.matmul(unit, self.codes[rows].astype(np.float32).T, out=scores[:, rows])
        scores *= self.scales.astype(np.float32)
        return scores

    def _error_bound(self, unit: np.ndarray) -> np.ndarray:
        """Bound the distance of a scanned score from the true one, whatever the order of summation.

        Higham, Accuracy and Stability of Numerical Algorithms, section 3.1: an inner product of n terms errs
        by at most n u / (1 - n u) times the sum of magnitudes. Four more roundings: the query, the scale, the
        score.
        """
        terms = (self.dim + 4) * 2.0**-24
        peak = _LEVELS * float(self.scales.max())
        return np.asarray(terms / (1 - terms) * peak * np.abs(unit).sum(axis=1) * (1 + 1e-6) + 1e-30)

    def _best(self, approximate: np.ndarray, query: np.ndarray, k: int, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the exact best ``k`` of one row and their float64 scores, excluded items left out."""
        candidates = np.flatnonzero(approximate > -np.inf)
        if len(candidates) > k:
            kth = np.partition(approximate, len(approximate) - k)[len(approximate) - k]
            floor = np.nextafter(np.float32(kth - margin), np.float32(-np.inf))
            candidates = np.flatnonzero(approximate >= floor)
        rows = _dequantise(self.codes[candidates], self.scales[candidates]).astype(np.float64)
        # Multiply and sum row by row: a BLAS product may round equal rows differently at different positions.
        exact = (rows * query).sum(axis=1)
        order = np.argsort(-exact, kind="stable")[:k]
        return candidates[order], exact[order]


def _dequantise(codes: np.ndarray, scales: np.ndarray) -> Float32[np.ndarray, "items dim"]:
    return np.asarray(codes.astype(np.float32) * scales.astype(np.float32)[:, None])


def _ids_problem(ids: Sequence[str], items: int) -> str | None:
    """Say what is wrong with ``ids``, or None."""
    if len(ids) != items:
        return f"{len(ids)} ids for {items} item vectors: give one each"
    if len(set(ids)) != items:
        return "item ids repeat: give each item its own"
    try:
        "".join(ids).encode()
    except UnicodeEncodeError as error:
        return f"an item id is not valid Unicode ({error})"
    return None


def _table_problem(arrays: dict[str, np.ndarray], header: dict[str, object]) -> str | None:
    """Say what is wrong with decoded arrays, or None; everything that ``from_bytes`` relies on."""
    if header.get("format") != _FORMAT:
        return f"its format is {header.get('format')!r}, not {_FORMAT!r}"
    wanted = {
        "codes": (np.int8, 2),
        "scales": (np.float16, 1),
        "ids": (np.uint8, 1),
        "id_ends": (np.uint32, 1),
    }
    found = {name: (array.dtype.type, array.ndim) for name, array in arrays.items()}
    if found != wanted:
        return f"its arrays are {sorted(found)} with other names, types or ranks than a table has"
    codes, scales, ends = arrays["codes"], arrays["scales"], arrays["id_ends"]
    items, dim = codes.shape
    if not (1 <= items <= MAX_ITEMS and 1 <= dim <= MAX_DIM and len(scales) == len(ends) == items):
        return f"{items} items of {dim} dimensions with {len(scales)} scales and {len(ends)} ids do not fit"
    if not (np.isfinite(scales).all() and (scales >= 0).all() and not np.signbit(scales).any()):
        return "a scale is negative or not finite"
    if (codes == -128).any():
        return "a code is -128, outside -127..127"
    if (ends[1:] < ends[:-1]).any() or int(ends[-1]) != len(arrays["ids"]):
        return "its id offsets do not add up"
    return None
