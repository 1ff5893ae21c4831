import faiss
import numpy as np
import pytest

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.files import sha256_file
from fedrecall.protocol.item_table import ItemTable
from fedrecall.server.recall.index import (
    build_index,
    load_index,
    recall_against_exact,
    save_index,
    search_index,
    stated_recall,
)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(21)
    mixing = rng.standard_normal((16, 32)) / 4
    vectors = rng.standard_normal((3000, 16)) @ mixing + 0.1 * rng.standard_normal((3000, 32))
    queries = rng.standard_normal((40, 16)) @ mixing
    table = ItemTable.from_vectors(vectors.astype(np.float32), [str(i) for i in range(3000)])
    return table, queries.astype(np.float32)


class IndexContract:
    """What every kind of index keeps."""

    kind = None
    floor = 1.0

    @pytest.fixture
    def index(self, data):
        steps = []
        index = build_index(data[0], self.kind, progress=lambda *call: steps.append(call))
        assert steps == [("index", 3000, 3000)] and len(index) == 3000 and index.kind == self.kind
        return index

    def test_recall_is_what_a_plain_count_says_and_above_its_floor(self, index, data):
        table, queries = data
        stated = stated_recall(index, table, queries)
        assert set(stated) == {"recall@10", "recall@50", "recall@100"}
        exact = np.argsort(-(queries @ table.vectors().T), axis=1)
        for k in (10, 50, 100):
            found, _ = search_index(index, queries, k)
            hits = sum(len(set(a) & set(b)) for a, b in zip(found.tolist(), exact[:, :k].tolist(), strict=True))
            assert stated[f"recall@{k}"] == pytest.approx(hits / (40 * k), abs=1e-9)
            assert stated[f"recall@{k}"] >= self.floor

    def test_scores_are_inner_products_best_first(self, index, data):
        table, queries = data
        found, scores = search_index(index, queries, 20)
        assert found.dtype == np.int32 and scores.dtype == np.float32
        exact = np.einsum("qkd,qd->qk", table.vectors()[found], queries)
        np.testing.assert_allclose(scores, exact, atol=0.25 if self.kind == "sq8" else 1e-4)
        assert (np.diff(scores, axis=1) <= 0).all()

    def test_excluded_items_never_appear(self, index, data):
        _, queries = data
        best, _ = search_index(index, queries, 30)
        found, _ = search_index(index, queries, 10, [row[::2] for row in best])
        for row in range(len(queries)):
            assert not set(found[row]) & set(best[row, ::2])
            assert (found[row] >= 0).all()

    @pytest.mark.parametrize("items", [1, 40, 120, 700])
    def test_as_many_items_come_as_there_are(self, data, items):
        """Whatever part of them an index visits: it visits the others where too few are found."""
        table = ItemTable.from_vectors(data[0].vectors()[:items], [str(i) for i in range(items)])
        index = build_index(table, self.kind)
        for k in (1, 10, 100, 1000):
            for without in (0, 3):
                left = np.arange(min(without, items))
                found, _ = search_index(index, data[1][:5], k, [left] * 5)
                there = (found >= 0).sum(axis=1)
                assert (there == min(k, items - len(left))).all()
                assert not np.isin(found[found >= 0], left).any()

    def test_it_comes_back_from_disk_with_its_settings(self, index, data, tmp_path):
        _, queries = data
        sha256 = save_index(index, tmp_path / "index.faiss")
        assert sha256 == sha256_file(tmp_path / "index.faiss")
        back = load_index(tmp_path / "index.faiss", sha256=sha256)
        assert back.kind == index.kind
        for a, b in zip(search_index(index, queries, 50), search_index(back, queries, 50), strict=True):
            np.testing.assert_array_equal(a, b)


class TestFlat(IndexContract):
    kind = "flat"
    floor = 0.999

    def test_it_is_the_default_here_and_agrees_with_the_table(self, index, data):
        table, queries = data
        assert build_index(table).kind == "flat"
        assert recall_against_exact(index, table, queries) >= 0.999

    def test_more_than_there_is_ends_in_nothing(self, index, data):
        table, queries = data
        exclude = [np.arange(2998)] * 2
        for found, scores in (
            search_index(index, queries[:2], 5, exclude),
            table.search(queries[:2], 5, exclude),
        ):
            assert set(found[0, :2].tolist()) == {2998, 2999} and found[0, 2:].tolist() == [-1] * 3
            assert (scores[:, 2:] == -np.inf).all()


class TestSq8(IndexContract):
    kind = "sq8"
    floor = 0.97


class TestHnsw(IndexContract):
    kind = "hnsw"
    floor = 0.98


class TestIvf(IndexContract):
    kind = "ivf"
    floor = 0.6


def test_recall_falls_when_the_index_is_of_other_vectors(data):
    table, queries = data
    other = np.random.default_rng(5).permutation(table.vectors())
    wrong = build_index(ItemTable.from_vectors(other, list(table.ids)))
    assert recall_against_exact(wrong, table, queries) < 0.1


def test_bytes_are_hashed_before_they_are_parsed(data, tmp_path):
    index = build_index(data[0], "hnsw")
    path = tmp_path / "index.faiss"
    sha256 = save_index(index, path)
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    for at in rng.integers(len(whole), size=50).tolist():
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(CorruptArtefact, match="other bytes"):
            load_index(path, sha256=sha256)
    path.unlink()
    with pytest.raises(CorruptArtefact, match="cannot be read"):
        load_index(path, sha256=sha256)


def test_bytes_with_the_right_hash_must_still_be_one_of_our_indexes(tmp_path):
    path = tmp_path / "index.faiss"
    path.write_bytes(b"not an index")
    with pytest.raises(CorruptArtefact, match="not a FAISS index"):
        load_index(path, sha256=sha256_file(path))
    for other in (faiss.IndexFlatL2(4), faiss.IndexLSH(4, 8)):
        path.write_bytes(faiss.serialize_index(other).tobytes())
        with pytest.raises(CorruptArtefact, match="holds a Index"):
            load_index(path, sha256=sha256_file(path))


def test_bad_requests_are_named(data):
    table, queries = data
    index = build_index(table)
    small = ItemTable.from_vectors(table.vectors()[:5], list("abcde"))
    for call, words in [
        (lambda: build_index(table, "annoy"), "choose one of flat, sq8, hnsw, ivf"),
        (lambda: search_index(index, queries[:, :3], 1), "queries have shape"),
        (lambda: search_index(index, queries, 0), "k is 0"),
        (lambda: search_index(index, queries * np.float32("nan"), 1), "not finite"),
        (lambda: search_index(index, queries, 1, []), "0 rows for 40"),
        (lambda: recall_against_exact(index, small, queries), "3000 items, the table 5"),
        (lambda: recall_against_exact(index, table, queries[:0]), "no queries"),
    ]:
        with pytest.raises(FedrecallError, match=words):
            call()
    assert search_index(index, queries[:0], 3)[0].shape == (0, 3)
    assert recall_against_exact(build_index(small), small, queries) == 1.0
