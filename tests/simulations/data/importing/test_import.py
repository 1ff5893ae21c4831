import dataclasses
import json
import os
import stat
from pathlib import Path

import pytest

from fedrecall.protocol.errors import CorruptArtefact, DataError, FedrecallError
from fedrecall.simulations.data.cache import check_folder, new_folder
from fedrecall.simulations.data.describe import describe
from fedrecall.simulations.data.importing.import_spec import ImportSpec
from fedrecall.simulations.data.importing.importer import import_files
from fedrecall.simulations.data.items import ItemColumns, read_items
from fedrecall.simulations.data.places import imported_folder, list_datasets
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.data.splits import split_loo

LOG = """\
Käufer¦Ware¦Wann¦Was
ärger¦☕ kaffee¦02.01.2021 10:00¦view
ärger¦tee¦01.01.2021 10:00¦buy
ärger¦brot¦03.01.2021 10:00¦view
李¦tee¦01.01.2021 10:00¦buy
李¦☕ kaffee¦01.01.2021 10:00¦stare
李¦unbekannt¦01.01.2021 10:00¦view
李¦brot¦01.01.2021 10:00¦view
李¦☕ kaffee¦01.01.2021 10:00¦view
"""
ITEMS = """\
{"id": "brot", "name": "Brot", "tags": ["essen"]}
{"id": "tee", "name": "Tee", "tags": ["trinken", "heiß"]}
{"id": "☕ kaffee", "name": "Kaffee", "tags": ["trinken", "heiß"]}
{"id": "nie", "name": "Nie"}
"""


@pytest.fixture
def spec(cache: Path, tmp_path: Path) -> ImportSpec:
    log, items = tmp_path / "log.txt", tmp_path / "items.json"
    log.write_text(LOG, encoding="utf-16")
    items.write_text(ITEMS, encoding="utf-16")
    return ImportSpec(
        files=(log,),
        name="laden",
        user="Käufer",
        item=2,
        time="Wann",
        time_format="%d.%m.%Y %H:%M",
        event="Was",
        event_weights={"view": 1, "buy": 4},
        separator="¦",
        encoding="utf-16",
        items_file=items,
        item_id="id",
        title="name",
        categories="tags",
    )


def test_a_layout_that_nobody_prepared(spec: ImportSpec) -> None:
    report = import_files(spec)
    assert report["cleaning"]["dropped"]["unknown event type"] == 1
    assert report["cleaning"]["dropped"]["unknown item"] == 1
    data = load_dataset("laden")
    ids = data.catalogue.ids
    assert ids == ("brot", "tee", "☕ kaffee", "nie")
    assert data.catalogue.source == "file"
    assert data.catalogue.titles == ("Brot", "Tee", "Kaffee", "Nie")
    assert data.catalogue.categories == (("essen",), ("trinken", "heiß"), ("trinken", "heiß"), ())
    assert data.user_ids == ("ärger", "李")
    assert [ids[i] for i in data.events.history(0)] == ["tee", "☕ kaffee", "brot"]
    assert [ids[i] for i in data.events.history(1)] == [
        "tee",
        "brot",
        "☕ kaffee",
    ]  # file order breaks the tie
    assert data.events.weights[:3].tolist() == [4.0, 1.0, 1.0]
    assert data.events.type_names == ("view", "buy")
    split = split_loo(data)
    assert [ids[i] for i in split.test.items] == ["brot", "☕ kaffee"]
    assert data.cleaning["items"]["kept"] == 4
    json.dumps(data.cleaning, allow_nan=False)
    facts = describe("laden")
    assert facts["interactions"] == 6
    assert facts["times"]["first"] == "2021-01-01T10:00:00+00:00"
    rated = load_dataset("laden", catalogue="rated")
    assert rated.catalogue.ids == ("☕ kaffee", "tee", "brot")


def test_no_times_no_header_no_items_several_files(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1 x 3\n1 y 1\n2 x 2\n")
    (tmp_path / "b").write_text("1 z 7\n2 y 1\n")
    files = (tmp_path / "a", tmp_path / "b")
    import_files(ImportSpec(files=files, name="plain", user=1, item=2, weight=3, header=False))
    data = load_dataset("plain")
    assert data.catalogue.source == "rated"
    assert data.events.times is None
    assert [data.catalogue.ids[i] for i in data.events.history(0)] == ["x", "y", "z"]
    assert data.events.weights.tolist() == [2.0, 1.0, 3.0, pytest.approx(1.5849625), 1.0]
    row = next(r for r in list_datasets() if r["name"] == "plain")
    assert row["imported"]
    folder = imported_folder("plain")
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert sorted(p.name for p in folder.parent.iterdir()) == ["plain"]


def test_titles_and_categories_may_stand_in_the_event_file(cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("user,item,name,kind\nu,1,,a|b\nu,2,Two,\nv,1, One  more ,c\nv,2,Zwei,d\nw,3,,\n")
    import_files(ImportSpec(files=(log,), name="own", user="user", item="item", title="name", categories="kind"))
    data = load_dataset("own")
    assert data.catalogue.ids == ("1", "2", "3") and data.catalogue.source == "rated"
    assert data.catalogue.titles == ("One more", "Two", "")
    assert data.catalogue.categories == (("a", "b"), ("d",), ())
    assert load_dataset("own", k_core=2).catalogue.titles == ("One more", "Two")


def test_an_import_of_another_version_is_refused(spec: ImportSpec) -> None:
    import_files(spec)
    folder = imported_folder("laden")
    report = json.loads((folder / "report.json").read_text())
    with new_folder(folder) as fresh:
        for path in folder.iterdir():
            if path.name not in ("manifest.json", "report.json"):
                (fresh / path.name).write_bytes(path.read_bytes())
        (fresh / "report.json").write_text(json.dumps(report | {"version": 1}))
    for act in (lambda: load_dataset("laden"), lambda: import_files(spec)):
        with pytest.raises(DataError, match="--replace"):
            act()


def test_a_name_is_never_overwritten_unasked(spec: ImportSpec) -> None:
    first = import_files(spec)
    assert import_files(spec) == first
    with pytest.raises(DataError, match="--replace"):
        import_files(dataclasses.replace(spec, event_weights={"view": 2}))
    log = Path(spec.files[0])
    log.write_text(LOG.replace("brot", "tee"), encoding="utf-16")
    with pytest.raises(DataError, match="--replace"):
        import_files(spec)
    before = load_dataset("laden").sha256
    import_files(dataclasses.replace(spec, replace=True))
    assert load_dataset("laden").sha256 != before


def test_a_failed_import_leaves_nothing(spec: ImportSpec, cache: Path) -> None:
    with pytest.raises(DataError, match="no time can be read"):
        import_files(dataclasses.replace(spec, time_format="%Y"))
    assert not imported_folder("laden").exists()
    import_files(spec)
    with pytest.raises(DataError, match="no time can be read"):
        import_files(dataclasses.replace(spec, time_format="%Y", replace=True))
    assert load_dataset("laden").events.n_events == 6


def test_a_place_that_cannot_be_written_is_named(
    spec: ImportSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("FEDRECALL_CACHE", str(blocked))
    with pytest.raises(FedrecallError, match="FEDRECALL_CACHE"):
        import_files(spec)


@pytest.mark.parametrize("name", ["events.parquet", "users.parquet", "items.parquet", "report.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["change", "delete"])
def test_a_damaged_import_is_detected(spec: ImportSpec, name: str, damage: str) -> None:
    import_files(spec)
    file = imported_folder("laden") / name
    if damage == "delete":
        file.unlink()
    else:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    with pytest.raises(CorruptArtefact, match="--replace"):
        load_dataset("laden")


def test_an_interrupted_write_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "set"
    with new_folder(target) as fresh:
        (fresh / "data").write_text("old")
    with pytest.raises(KeyboardInterrupt), new_folder(target) as fresh:
        (fresh / "data").write_text("ne")
        raise KeyboardInterrupt
    check_folder(target, "")
    assert (target / "data").read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["set"]


def test_an_item_file_keeps_the_first_of_each_identifier(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("id;t;c\nb;Bee;x, y,x\na;Ay;\nb;Other;z\n;None;z\nbad\n")
    items = read_items(path, ItemColumns(item="id", title="t", categories="c", category_separator=","))
    assert items.ids == ("b", "a")
    assert items.titles == ("Bee", "Ay")
    assert items.categories == (("x", "y"), ())
    assert items.report["dropped"] == {"malformed line": 1, "missing field": 1, "duplicate": 1}
    assert items.report["malformed_lines"][0]["line"] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "--name"),
        ({"name": "ml-1m"}, "knows already"),
        ({"files": ()}, "no file"),
        ({"item_id": None}, "--item-id"),
        ({"items_file": None, "item_id": None, "items_encoding": "utf-8"}, "--items-encoding"),
        ({"item": "Käufer"}, "--user and --item name the same column"),
        ({"time": 2, "item": 2}, "--item and --time name the same column"),
        ({"time_format": "dd.mm.yyyy"}, "give '%d.%m.%Y'"),
        ({"layout": "lists"}, "leave out --event"),
        ({"item_separator": ""}, "item separator"),
        ({"event": None}, "--event"),
        ({"time": None}, "--time"),
        ({"category_separator": ""}, "separator"),
    ],
)
def test_contradictions_are_refused(spec: ImportSpec, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        dataclasses.replace(spec, **change)  # type: ignore[arg-type]
