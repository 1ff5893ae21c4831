"""Everybody's lists: each as its device alone makes it, and files that measure to the run's own figures elsewhere."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedrecall.cli.app import call
from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.data.importing.frames import dataset_from_frame
from fedrecall.simulations.results.lists import falling, held_out, recommend_all, write_held_out, write_lists
from fedrecall.simulations.results.tables import quality
from fedrecall.simulations.runs.inspect import Finished, open_finished, recommended
from fedrecall.simulations.runs.run import run

from ...fedrecall.commands import answer
from ..runs.small_runs import small_config

AWKWARD = ("two words", "100%", "tab\tbetween", "Ärger", "line\nbreak")
"""Identifiers that a format with fields between spaces cannot hold as they are."""


def quiet(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run on 60 users, whose names and items are awkward; read, never changed."""
    rng = np.random.default_rng(3)
    users = [f"{AWKWARD[u % 5]} {u}" for u in np.repeat(np.arange(60), 10)]
    taste = np.repeat(np.arange(60) % 4, 10)
    items = [f"{AWKWARD[i % 5]} #{i}" for i in taste * 12 + rng.integers(0, 14, 600)]
    data = dataset_from_frame(pa.table({"u": users, "i": items}), user="u", item="i", name="awkward")
    folder = tmp_path_factory.mktemp("lists") / "run"
    run(small_config("rounds.count=1", dataset="awkward"), out=folder, progress=quiet, dataset=data)
    return open_finished(folder, quiet)


def by_user(table: pa.Table) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in table.to_pylist():
        found.setdefault(row["user"], []).append(row["item"])
        assert row["place"] == len(found[row["user"]])
    return found


def test_each_list_is_what_its_device_says_alone(opened: Finished) -> None:
    stages: list[Any] = []
    table = recommend_all(opened, 8, lambda *said: stages.append(said))
    lists = by_user(table)
    assert list(lists) == list(opened.dataset.user_ids) and stages[-1] == ("recommend", 60, 60)
    for number, user in list(enumerate(opened.dataset.user_ids))[::7]:
        alone = recommended(opened, user, 8)["items"]
        assert lists[user] == [row["item"] for row in alone]
        had = {opened.dataset.catalogue.ids[i] for i in opened.split.test_context.history(number)}
        assert not had & set(lists[user])
    assert table["score"].to_numpy() == pytest.approx(
        [row["score"] for user in opened.dataset.user_ids for row in recommended(opened, user, 8)["items"]], rel=1e-5
    )


def test_a_list_ends_where_no_item_is_left(opened: Finished) -> None:
    lists = by_user(recommend_all(opened, 1000, quiet))
    for number, user in enumerate(opened.dataset.user_ids):
        had = len(np.unique(opened.split.test_context.history(number)))
        assert len(lists[user]) == len(opened.dataset.catalogue) - had
    with pytest.raises(UsageError, match="at least 1"):
        recommend_all(opened, 0, quiet)


def test_where_repeats_are_recommended_nothing_is_left_out(opened: Finished) -> None:
    again = replace(opened, split=replace(opened.split, repeats="recommend"))
    lists = by_user(recommend_all(again, 1000, quiet))
    everything = set(opened.dataset.catalogue.ids)
    assert len(lists) == 60 and all(set(found) == everything for found in lists.values())
    user = opened.dataset.user_ids[3]
    assert lists[user] == [row["item"] for row in recommended(again, user, 1000)["items"]]


def read_trec(path: Path) -> list[list[str]]:
    """Read as trec_eval does: fields between white space, a line an item."""
    return [line.split() for line in path.read_text().split("\n") if line]


def test_a_trec_file_measures_to_the_figures_of_the_run(opened: Finished, tmp_path: Path) -> None:
    """Recall, reciprocal rank and ndcg by naive loops over the two files alone; scores decide, as in trec_eval."""
    lists, hidden = recommend_all(opened, 10, quiet), held_out(opened)
    write_lists(lists, tmp_path / "run.trec")
    write_held_out(hidden, tmp_path / "hidden.trec")
    judged = read_trec(tmp_path / "hidden.trec")
    wanted = {(user, item) for user, zero, item, grade in judged if (zero, grade) == ("0", "1")}
    scored: dict[str, list[tuple[float, str]]] = {}
    for user, q0, item, _, score, tag in read_trec(tmp_path / "run.trec"):
        assert (q0, tag) == ("Q0", "fedrecall")
        scored.setdefault(user, []).append((float(np.float32(score)), item))
    tested = {user for user, _ in wanted}
    hits, ranks, gains = [], [], []
    for user in tested:
        ranked = [item for _, item in sorted(scored[user], key=lambda pair: -pair[0])]
        places = [place for place, item in enumerate(ranked, 1) if (user, item) in wanted]
        hits.append(len(places) / sum(1 for u, _ in wanted if u == user))
        ranks.append(1 / places[0] if places else 0.0)
        gains.append(sum(1 / np.log2(place + 1) for place in places))
    metrics = opened.run["metrics"]
    assert np.mean(hits) == pytest.approx(metrics["recall@10"]) and np.mean(hits) > 0
    assert np.mean(ranks) == pytest.approx(metrics["mrr@10"])
    assert np.mean(gains) == pytest.approx(metrics["ndcg@10"])
    assert {unquote(user) for user in scored} == set(opened.dataset.user_ids)
    assert {unquote(item) for pairs in scored.values() for _, item in pairs} <= set(opened.dataset.catalogue.ids)


@pytest.mark.filterwarnings("ignore")  # of ranx' own sources, when Python first compiles them
@pytest.mark.slow  # numba compiles ranx for 20 to 40 seconds
def test_ranx_reads_all_three_files_and_finds_the_figures_of_the_run(opened: Finished, tmp_path: Path) -> None:
    from ranx import Qrels, Run, evaluate

    lists, hidden = recommend_all(opened, 10, quiet), held_out(opened)
    for ending in ("trec", "json", "parquet"):
        write_lists(lists, tmp_path / f"run.{ending}")
        write_held_out(hidden, tmp_path / f"hidden.{ending}")
    pairs = {
        kind: (
            Qrels.from_file(str(tmp_path / f"hidden.{kind}"), kind=kind),
            Run.from_file(str(tmp_path / f"run.{kind}"), kind=kind),
        )
        for kind in ("trec", "json")
    }
    names = {"user": object, "item": object}  # ranx knows no texts of pandas 3
    frame = pq.read_table(tmp_path / "run.parquet").to_pandas().astype(names)
    judged = pq.read_table(tmp_path / "hidden.parquet").to_pandas().astype(names).assign(grade=1)
    pairs["parquet"] = (
        Qrels.from_df(judged, q_id_col="user", doc_id_col="item", score_col="grade"),
        Run.from_df(frame.astype({"score": float}), q_id_col="user", doc_id_col="item", score_col="score"),
    )
    metrics = opened.run["metrics"]
    for ending, (qrels, ranked) in pairs.items():
        found = evaluate(qrels, ranked, ["recall@10", "mrr@10", "ndcg@10"], make_comparable=True)
        assert found == pytest.approx({name: metrics[name] for name in found}, abs=1e-9), ending


@given(st.lists(st.lists(st.floats(-2, 2, width=16), min_size=1, max_size=9), min_size=1, max_size=4))
def test_scores_of_files_fall_strictly_and_hardly_move(lists: list[list[float]]) -> None:
    ordered = [sorted(scores, reverse=True) for scores in lists]
    rows = [(place, score) for scores in ordered for place, score in enumerate(scores, 1)]
    places, scores = zip(*rows, strict=True)
    columns = {"place": pa.array(places, pa.int32()), "score": pa.array(scores, pa.float32())}
    found = falling(pa.table(columns))
    same = np.array(places[1:]) > 1
    assert (np.diff(found)[same] < 0).all()
    assert np.abs(found - np.array(scores, dtype=np.float32)).max() <= 1e-5


def test_the_command_writes_every_kind_of_file(
    opened: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, hidden = str(opened.folder), str(tmp_path / "a.parquet"), tmp_path / "hidden.json"
    said = answer(capsys, "recommend", folder, "--all", "--k", "5", "--out", out, "--held-out", str(hidden))
    table = pq.read_table(out)
    assert said == {"run": folder, "users": 60, "k": 5, "rows": 300, "out": out, "held_out": str(hidden)}
    assert table.column_names == ["user", "place", "item", "title", "score"] and table.num_rows == 300
    judged = json.loads(hidden.read_text())
    pairs = {(row["user"], row["item"]) for row in held_out(opened).to_pylist()}
    assert {(user, item) for user, items in judged.items() for item in items} == pairs
    assert answer(capsys, "recommend", folder, "--all", "--k", "5", "--out", str(tmp_path / "a.json"))["rows"] == 300
    ranked = json.loads((tmp_path / "a.json").read_text())
    assert {user: list(items) for user, items in ranked.items()} == by_user(table)
    assert (tmp_path / "a.parquet").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "--user"),
        (["--user", "x", "--all", "--out", "l.parquet"], "--user"),
        (["--all"], "--out"),
        (["--user", "x", "--out", "l.parquet"], "--all"),
        (["--user", "x", "--held-out", "l.parquet"], "--all"),
        (["--all", "--out", "l.csv"], ".parquet, .trec or .json"),
        (["--all", "--out", "l.trec", "--held-out", "l"], "ends in nothing"),
    ],
)
def test_what_the_command_cannot_do_is_said_before_anything_is_read(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(["recommend", "nowhere", *options]) == 2
    assert said in capsys.readouterr().err


def test_quality_has_a_row_for_each_who_has_figures() -> None:
    table = quality({"metrics": {"a@1": 0.5, "b@1": 0.25}, "baselines": {"x": {"a@1": 0.125}, "y": None}})
    assert table.to_pylist() == [{"who": "this run", "a@1": 0.5, "b@1": 0.25}, {"who": "x", "a@1": 0.125, "b@1": None}]
