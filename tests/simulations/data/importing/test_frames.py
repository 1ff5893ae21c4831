"""Data sets from frames: the same as from a file with the same rows, whichever library holds them."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedrecall.protocol.errors import DataError
from fedrecall.simulations.data.importing.frames import dataset_from_frame
from fedrecall.simulations.data.importing.import_spec import ImportSpec
from fedrecall.simulations.data.importing.importer import import_files
from fedrecall.simulations.data.registry import load_dataset

NAMES = {"user": "who", "item": "what", "time": "when", "event": "how", "weight": "much"}
CATALOGUE = {
    "id": ["7", "3", "9", "5"],
    "label": ["seven", None, "nine", "five"],
    "kinds": [["a", "b"], [], ["b"], None],
}
ITEMS = {"item_id": "id", "title": "label", "categories": "kinds"}


def columns():
    """Return rows with a bit of everything that cleaning drops: nulls, repeats, unknown items and types."""
    rng = np.random.default_rng(4)
    users = [f"ü{u}" if u else None for u in rng.integers(0, 9, 200)]
    items = [int(i) for i in rng.choice([3, 5, 7, 8, 9], 200)]
    times = [datetime(2024, 1, 1 + int(d), 12, tzinfo=UTC) for d in rng.integers(0, 20, 200)]
    types = [str(t) for t in rng.choice(["view", "buy", "spam"], 200)]
    return {"who": users, "what": items, "when": times, "how": types, "much": rng.integers(0, 5, 200).tolist()}


class Capsule:
    """A frame of a library that is not here: polars and others hand their columns over like this."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


class Converting:
    """A frame that turns itself into an Arrow table when asked."""

    def __init__(self, table):
        self._table = table

    def to_arrow(self):
        return self._table


class Interchanging:
    """A frame with nothing but the dataframe interchange interface."""

    def __init__(self, table):
        self._table = table

    def __dataframe__(self, nan_as_null=False, allow_copy=True):
        return self._table.__dataframe__(nan_as_null, allow_copy)


def pandas_frame(table):
    return pytest.importorskip("pandas").DataFrame(table.to_pydict())


def polars_frame(table):
    return pytest.importorskip("polars").from_arrow(table)


def in_pieces(table):
    return pa.concat_tables([table.slice(0, 50), table.slice(50, 1), table.slice(51)])


def in_batches(table):
    return pa.Table.from_batches(table.to_batches(max_chunksize=1))


def one_batch(table):
    return table.combine_chunks().to_batches()[0]


def as_polars_does(table):
    """Return a frame of the types in which polars hands its columns over: views of texts, and categories of them."""
    views = table.set_column(0, table.column_names[0], table.column(0).cast(pa.string_view()))
    if "how" not in table.column_names:
        lists = table["kinds"].cast(pa.large_list(pa.string_view()))
        return Capsule(views.set_column(2, "kinds", lists))
    codes = pa.array([{"view": 0, "buy": 1, "spam": 2}[kind] for kind in table["how"].to_pylist()], pa.uint32())
    kinds = pa.DictionaryArray.from_arrays(codes, pa.array(["view", "buy", "spam"], pa.string_view()))
    return Capsule(views.set_column(3, "how", kinds))


WAYS = [lambda table: table, in_pieces, one_batch, Capsule, as_polars_does, Converting, pandas_frame, polars_frame]


def assert_same(one, other):
    for name in ("ids", "titles", "categories", "source"):
        assert getattr(one.catalogue, name) == getattr(other.catalogue, name)
    assert one.user_ids == other.user_ids and one.events.type_names == other.events.type_names
    for name in ("offsets", "items", "times", "types", "weights"):
        np.testing.assert_array_equal(getattr(one.events, name), getattr(other.events, name))
    assert one.cleaning["dropped"] == other.cleaning["dropped"]


@pytest.mark.parametrize("way", WAYS)
def test_a_frame_is_the_data_set_that_a_parquet_file_of_its_rows_is(way, cache, tmp_path):
    table, catalogue = pa.table(columns()), pa.table(CATALOGUE)
    pq.write_table(table, tmp_path / "log.parquet")
    pq.write_table(catalogue, tmp_path / "items.parquet")
    weights = {"view": 1.0, "buy": 2.0}
    files = {"files": (tmp_path / "log.parquet",), "items_file": tmp_path / "items.parquet"}
    import_files(ImportSpec(**files, name="log", event_weights=weights, **NAMES, **ITEMS))
    found = dataset_from_frame(way(table), items=way(catalogue), event_weights=weights, **NAMES, **ITEMS)
    assert_same(found, load_dataset("log"))
    dropped = found.cleaning["dropped"]
    assert all(dropped[reason] for reason in ("missing field", "bad weight", "unknown event type", "unknown item"))
    assert found.sha256 == dataset_from_frame(table, items=catalogue, event_weights=weights, **NAMES, **ITEMS).sha256


def several_a_row():
    """Return a frame of the shapes that files may have too: objects, lists of items, texts that are no value."""
    kinds = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 0], pa.uint32()), pa.array(["view", "buy"]))
    return pa.table(
        {
            "who": [{"id": 1.0}, {"id": 2.0}, {"id": None}, {"id": 1.0}],
            "what": pa.array([["x", "y", "y"], ["x", "-"], ["z"], []], pa.list_(pa.string())),
            "texts": ["x,y,y", "x,-", "z", None],
            "name": [["ex", "why", "why"], ["other", "none"], ["zed"], []],
            "how": kinds,
        }
    )


@pytest.mark.parametrize("way", [lambda table: table, in_batches, Capsule])
@pytest.mark.parametrize(
    ("options", "items"),
    [
        ({"item": "what"}, ("x", "y", "-")),
        ({"item": "what", "missing": ("-",)}, ("x", "y")),
        ({"item": "what", "missing": ("-",), "keep_duplicates": True}, ("x", "y")),
        ({"item": "what", "title": "name", "event": "how"}, ("x", "y", "-")),
        ({"item": "texts", "item_separator": ","}, ("x", "y", "-")),
    ],
)
def test_what_a_file_may_be_written_like_a_frame_may_be(way, options, items, cache, tmp_path):
    table = several_a_row()
    pq.write_table(table, tmp_path / "log.parquet")
    import_files(ImportSpec(files=(tmp_path / "log.parquet",), name="log", user="who.id", **options))
    found = dataset_from_frame(way(table), user="who.id", **options)
    assert_same(found, load_dataset("log"))
    assert found.user_ids == ("1", "2") and found.catalogue.ids == items
    again = "keep_duplicates" in options
    assert [items[i] for i in found.events.history(0)] == (["x", "y", "y"] if again else ["x", "y"])
    assert found.catalogue.titles[:2] == (("ex", "why") if "title" in options else ("", ""))
    assert found.cleaning["files"][0]["lists"] == {"lines": 2, "events": 5}


def test_texts_with_commas_are_items_where_nobody_says_that_they_are_lists():
    table = pa.table({"u": list("abcdef"), "i": [f"Mug, {n % 2}" for n in range(6)]})
    assert dataset_from_frame(table, user="u", item="i").catalogue.ids == ("Mug, 0", "Mug, 1")


def test_the_hash_follows_rows_and_settings():
    table = pa.table(columns())
    made = dataset_from_frame(table, user="who", item="what", time="when")
    others = [
        dataset_from_frame(table, user="who", item="what"),
        dataset_from_frame(table, user="who", item="what", time="when", k_core=2),
        dataset_from_frame(table, user="who", item="what", time="when", keep_duplicates=True),
        dataset_from_frame(table.slice(1), user="who", item="what", time="when"),
    ]
    assert len({made.sha256, *(other.sha256 for other in others)}) == 5


@pytest.mark.parametrize("frame", [Interchanging, lambda t: t])
def test_without_times_rows_are_in_the_order_of_time(frame):
    table = pa.table({"u": ["a", "a", "b", "a"], "i": [3, 1, 1, 2]})
    made = dataset_from_frame(frame(table), user="u", item="i")
    assert made.events.times is None and made.user_ids == ("a", "b")
    assert [made.catalogue.ids[i] for i in made.events.history(0)] == ["3", "1", "2"]
    assert made.catalogue.source == "rated" and made.name == "frame"


@pytest.mark.parametrize(
    ("frame", "options", "said"),
    [
        ({"u": [1], "i": [2]}, {"user": "usr", "item": "i"}, "did you mean 'u'"),
        ({"u": [1], "i": [2]}, {"user": "x", "item": "i"}, "there are u, i"),
        ({"u": [], "i": []}, {"user": "u", "item": "i"}, "no rows"),
        ({"u": [None], "i": [2]}, {"user": "u", "item": "i"}, "no event is left"),
        ({"u": [1], "i": [{"a": 1}]}, {"user": "u", "item": "i"}, "has an object where --item is one value"),
        ({"u": [1], "i": [2]}, {"user": "u", "item": "i", "name": "ml-100k"}, "knows already"),
        ({"u": [1], "i": [2]}, {"user": "u", "item": "i", "name": "a/b"}, "letters"),
        ({"u": [1], "i": [2]}, {"user": "u", "item": "i", "item_id": "i"}, "go together"),
        ({"u": [1], "i": [2]}, {"user": "u", "item": "i", "event_weights": {"a": 1.0}}, "give event"),
        ({"u": [1], "i": [2]}, {"user": "u", "item": "i", "k_core": 5}, "5-core"),
        ({"u": [1], "i": [2]}, {"user": "u", "item": "i", "item_separator": ""}, "is empty"),
        ({"u": [{"id": 1}], "i": [2]}, {"user": "u.ID", "item": "i"}, "did you mean 'u.id'"),
    ],
)
def test_what_is_no_frame_of_events_is_named(frame, options, said):
    with pytest.raises(DataError, match=r".") as refused:
        dataset_from_frame(pa.table(frame), **options)
    assert said in str(refused.value)


@pytest.mark.parametrize("frame", [[("a", 1)], "events.csv", None, object()])
def test_what_has_no_columns_is_refused_with_what_would_have(frame):
    with pytest.raises(DataError, match="pandas and polars"):
        dataset_from_frame(frame, user="u", item="i")


def test_a_pandas_column_of_mixed_types_is_named():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(DataError, match="column u"):
        dataset_from_frame(pandas.DataFrame({"u": [1, "x"], "i": [1, 2]}), user="u", item="i")


def test_categories_of_a_fixed_number_are_lists():
    events = pa.table({"u": ["a", "a", "b"], "i": ["x", "y", "x"]})
    pairs = pa.array([["p", "q"], ["r", "s"]], pa.list_(pa.string(), 2))
    items = pa.table({"id": ["x", "y"], "kinds": pairs})
    made = dataset_from_frame(events, user="u", item="i", items=items, item_id="id", categories="kinds")
    assert made.catalogue.categories == (("p", "q"), ("r", "s"))


def test_two_columns_of_one_name_are_refused():
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["u", "i", "u"])
    with pytest.raises(DataError, match="2 columns"):
        dataset_from_frame(table, user="u", item="i")
    objects = pa.table([pa.array([{"id": 1}]), pa.array([2]), pa.array([{"id": 3}])], names=["u", "i", "u"])
    with pytest.raises(DataError, match="several columns named 'u'"):
        dataset_from_frame(objects, user="u.id", item="i")
