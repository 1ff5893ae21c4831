import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.item_table import ItemTable


def low_rank(rng, items, dim=64, rank=16, noise=0.3):
    """Vectors as recall models make them: a few strong directions and a little of all the others."""
    signal = rng.standard_normal((items, rank)) @ rng.standard_normal((rank, dim))
    return (signal / np.sqrt(rank) + noise * rng.standard_normal((items, dim))).astype(np.float32)


def table_of(vectors):
    return ItemTable.from_vectors(vectors, [f"item-{i}" for i in range(len(vectors))])


def naive(table, query, k, excluded=()):
    """One item at a time, in Python's exact rational-free float64 sums; ties by index."""
    scores = [sum(float(a) * float(b) for a, b in zip(row, query, strict=True)) for row in table.vectors()]
    order = sorted((i for i in range(len(scores)) if i not in excluded), key=lambda i: (-scores[i], i))[:k]
    return order, [scores[i] for i in order]


@pytest.fixture
def rng():
    return np.random.default_rng(20240501)


def test_quantisation_moves_a_coordinate_by_at_most_half_a_scale(rng):
    vectors = rng.standard_normal((500, 24)).astype(np.float32)
    vectors *= 10.0 ** rng.uniform(-6, 4, size=(500, 1)).astype(np.float32)
    vectors[7] = 0
    table = table_of(vectors)
    scales = table.scales.astype(np.float64)
    error = np.abs(table.vectors().astype(np.float64) - vectors)
    assert (error <= scales[:, None] * (0.5 + 1e-6)).all()
    exact = np.abs(vectors).max(axis=1) / 127
    assert (scales >= exact * (1 - 1e-6)).all()
    assert (scales <= exact * (1 + 2.0**-10) + 6e-8).all()
    assert not table.vectors()[7].any()


def test_recall_of_int8_against_float_is_high_and_an_item_costs_66_bytes(rng, tmp_path):
    vectors = low_rank(rng, 5000)
    queries = low_rank(rng, 100)
    table = table_of(vectors)
    found, _ = table.search(queries, 100)
    exact = np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)[:, :100]
    recall = np.mean([len(set(a) & set(b)) / 100 for a, b in zip(found.tolist(), exact.tolist(), strict=True)])
    assert 0.985 <= recall < 1.0
    table.save(tmp_path / "items.safetensors")
    ids = sum(len(text) + 4 for text in table.ids)
    assert 66 * 5000 <= (tmp_path / "items.safetensors").stat().st_size - ids <= 66 * 5000 + 600


def test_a_table_comes_back_and_equal_tables_are_equal_bytes(rng, tmp_path):
    ids = ["", "a", "żółć 🎬", "b\x00c", "a" * 300]
    table = ItemTable.from_vectors(low_rank(rng, 5, dim=3), ids)
    table.save(tmp_path / "t")
    back = ItemTable.load(tmp_path / "t")
    assert back.ids == tuple(ids) and len(back) == 5 and back.dim == 3
    np.testing.assert_array_equal(back.codes, table.codes)
    np.testing.assert_array_equal(back.scales, table.scales)
    assert back.to_bytes() == table.to_bytes() == (tmp_path / "t").read_bytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_search_is_exactly_the_naive_loop(data):
    """Few distinct codes, so that ties abound."""
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    items, dim, k = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 5), st.integers(1, 40)))
    table = table_of(rng.integers(-2, 3, size=(items, dim)).astype(np.float32))
    queries = rng.integers(-2, 3, size=(4, dim)).astype(np.float32)
    exclude = [rng.choice(items, size=rng.integers(0, items + 1), replace=False) for _ in range(4)]
    found, scores = table.search(queries, k, exclude)
    assert found.dtype == np.int32 and scores.dtype == np.float32 and found.shape == scores.shape == (4, k)
    for row in range(4):
        order, values = naive(table, queries[row], k, set(exclude[row].tolist()))
        assert found[row, : len(order)].tolist() == order
        assert (found[row, len(order) :] == -1).all() and (scores[row, len(order) :] == -np.inf).all()
        np.testing.assert_allclose(scores[row, : len(order)], values, rtol=1e-6, atol=1e-9)


def test_equal_vectors_anywhere_in_the_table_tie_by_index_in_any_batch(rng):
    """The rows lie in other blocks and other positions within them, where a BLAS may sum in another order."""
    vectors = 0.1 * low_rank(rng, 20_000, dim=37)
    twins = np.sort(rng.choice(20_000, size=50, replace=False))
    queries = rng.standard_normal((9, 37)).astype(np.float32)
    vectors[twins] = 3 * queries[4] / np.linalg.norm(queries[4])
    table = table_of(vectors)
    together, scores = table.search(queries, 60)
    assert together[4, :50].tolist() == twins.tolist()
    assert len(set(scores[4, :50].tolist())) == 1
    for row in range(9):
        alone, alone_scores = table.search(queries[row : row + 1], 60)
        np.testing.assert_array_equal(alone[0], together[row])
        np.testing.assert_array_equal(alone_scores[0], scores[row])


def test_near_ties_below_float32_are_put_in_order(rng):
    """Every row holds the same codes in another order, so that a float32 sum errs differently in each.

    Two small coordinates order the rows by less than that error: the scan alone would drop true winners.
    """
    codes = np.append(np.arange(-120, 120, 4), 0)
    places = rng.permutation(3000)
    vectors = np.zeros((3000, 64), dtype=np.float32)
    vectors[:, 0], vectors[:, 1] = places % 250 - 124, places // 250
    vectors[:, 2:63] = [rng.permutation(codes) for _ in range(3000)]
    order = np.lexsort((-vectors[:, 0], -vectors[:, 1]))[:100]
    vectors[:, 63] = 127  # scale 1 in every row
    query = np.full((1, 64), 0.1, dtype=np.float32)
    query[0, :2], query[0, 63] = (1e-8, 4e-6), 0
    query = np.append(query, [[0.7]], axis=1).astype(np.float32)  # 0.1 / 0.7 is not a round number
    vectors = np.append(vectors, np.zeros((3000, 1), dtype=np.float32), axis=1)
    found, _ = table_of(vectors).search(query, 100)
    assert found[0].tolist() == order.tolist()


def test_extreme_queries_neither_overflow_nor_reorder(rng):
    table = table_of(low_rank(rng, 300, dim=8))
    query = rng.standard_normal((1, 8)).astype(np.float32)
    plain, _ = table.search(query, 20)
    for factor in (2.0**125, 2.0**-60):
        found, scores = table.search(query * np.float32(factor), 20)
        np.testing.assert_array_equal(found, plain)
        assert not np.isnan(scores).any()
    zero, scores = table.search(np.zeros((1, 8), dtype=np.float32), 5)
    assert zero[0].tolist() == [0, 1, 2, 3, 4] and not scores.any()
    assert table.search(np.zeros((0, 8), dtype=np.float32), 5)[0].shape == (0, 5)


def test_bad_input_is_named(rng):
    vectors = low_rank(rng, 4, dim=3)
    table = table_of(vectors)
    cases = [
        (lambda: ItemTable.from_vectors(vectors[:0], []), "shape"),
        (lambda: ItemTable.from_vectors(vectors[0], ["a", "b", "c"]), "shape"),
        (lambda: ItemTable.from_vectors(vectors, ["a", "b", "c"]), "3 ids for 4"),
        (lambda: ItemTable.from_vectors(vectors, ["a", "b", "c", "a"]), "repeat"),
        (lambda: ItemTable.from_vectors(vectors, ["a", "b", "c", "\ud800"]), "Unicode"),
        (lambda: ItemTable.from_vectors(vectors * np.float32("nan"), list("abcd")), "'a' reaches nan"),
        (lambda: ItemTable.from_vectors(vectors * np.float32(1e9), list("abcd")), "reaches"),
        (lambda: table.search(vectors[:, :2], 1), "queries have shape"),
        (lambda: table.search(vectors, 0), "k is 0"),
        (lambda: table.search(vectors * np.float32("inf"), 1), "not finite"),
        (lambda: table.search(vectors, 1, [np.array([0])]), "1 rows for 4"),
        (lambda: table.search(vectors[:1], 1, [np.array([4])]), "outside 0..3"),
        (lambda: table.search(vectors[:1], 1, [np.array([-1])]), "outside 0..3"),
    ]
    for call, words in cases:
        with pytest.raises(FedrecallError, match=words):
            call()


def test_malformed_tables_are_refused_whatever_is_wrong(rng, tmp_path):
    good = load(table_of(low_rank(rng, 6, dim=4)).to_bytes())
    header = {"fedrecall": '{"format": "item_table/1"}'}
    assert len(ItemTable.from_bytes(save(good, metadata=header))) == 6

    def changed(**arrays):
        return {name: array for name, array in (good | arrays).items() if array is not None}

    high = good["scales"].copy()
    high[2] = np.inf
    low = good["codes"].copy()
    low[1, 1] = -128
    ends = good["id_ends"]
    wrong = [
        changed(scales=high),
        changed(scales=-good["scales"]),
        changed(codes=low),
        changed(codes=good["codes"].astype(np.int16)),
        changed(codes=good["codes"].reshape(-1)),
        changed(codes=good["codes"][:5]),
        changed(codes=np.zeros((6, 0), dtype=np.int8)),
        changed(id_ends=ends[::-1].copy()),
        changed(id_ends=ends - np.uint32(1)),
        changed(id_ends=np.full(6, ends[-1])),
        changed(id_ends=np.array([6, 12, 11, 24, 30, 36], dtype=np.uint32)),
        changed(ids=np.full_like(good["ids"], 0xFF)),
        changed(ids=None),
        changed(more=ends),
        {name: array[:0] for name, array in good.items()},
    ]
    for arrays in wrong:
        with pytest.raises(CorruptArtefact, match=r"the item table.*fetch it again"):
            ItemTable.from_bytes(save(arrays, metadata=header))
    for metadata in (
        None,
        {"fedrecall": "{}"},
        {"fedrecall": "{"},
        {"fedrecall": '{"format":"item_table/2"}'},
    ):
        with pytest.raises(CorruptArtefact):
            ItemTable.from_bytes(save(good, metadata=metadata))
    with pytest.raises(CorruptArtefact, match="missing"):
        ItemTable.load(tmp_path / "missing")


def test_ten_thousand_random_mutations_load_or_are_refused(rng):
    """A mutant may be another well-formed table (a changed code is one); anything else is CorruptArtefact."""
    data = ItemTable.from_vectors(low_rank(rng, 5, dim=3), ["a", "ж", "c", "dd", ""]).to_bytes()
    refused = 0
    for _ in range(10_000):
        mutant = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(mutant)))
            kind = rng.integers(5)
            if kind == 0:
                mutant[at] = int(rng.integers(256))
            elif kind == 1:
                mutant[at] ^= 1 << int(rng.integers(8))
            elif kind == 2:
                del mutant[at : at + int(rng.integers(1, 20))]
            elif kind == 3:
                mutant[at:at] = rng.bytes(int(rng.integers(1, 20)))
            else:
                mutant[at : at + 1] = b"9999999999999999999"[: int(rng.integers(1, 20))]
            mutant = mutant or bytearray(b"\0")
        try:
            table = ItemTable.from_bytes(bytes(mutant))
        except CorruptArtefact:
            refused += 1
        else:
            assert np.isfinite(table.vectors()).all() and len(table.ids) == len(table.codes)
            table.search(np.ones((1, table.dim), dtype=np.float32), 2)
    assert 5000 < refused < 10_000
