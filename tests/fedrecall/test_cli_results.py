"""Commands that read and make results: data sets, indexes, plans, runs side by side."""

import json

import numpy as np
import pytest

from fedrecall.cli.app import call
from fedrecall.cli.console import Output
from fedrecall.cli.run import summary
from fedrecall.protocol.item_table import ItemTable
from fedrecall.server.recall.release import write_release

from .commands import answer, write_run

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def released(tmp_path):
    vectors = np.random.default_rng(5).standard_normal((30, 8)).astype(np.float32)
    items = ItemTable.from_vectors(vectors, [f"item {i}" for i in range(29)] + ["Ärger [b]"])
    folder = tmp_path / "released"
    write_release(folder, model={}, items=items, round=1, plan_digest="0" * 64, ledger_head=None, simulated=True)
    return folder, items


def test_a_run_is_summed_up_with_its_bound_in_full(tmp_path, capsys):
    run = json.loads((write_run(tmp_path / "r", hits=[1, 0]) / "run.json").read_text())
    Output("text").answer(run, *summary(run, tmp_path / "r"))
    out = capsys.readouterr().out
    assert "0.5000" in out and "most popular" in out and "report.html" in out
    assert "Epsilon 2.000 at delta 1e-5 against released-model. Unit: user" in out
    assert "No bound against server" in out and "known seed" in out


def test_data_list_and_describe(capsys):
    names = {row["name"] for row in answer(capsys, "data", "list")}
    assert {"ml-100k", "ml-1m", "movietweetings", "steam", "synthetic"} <= names
    assert answer(capsys, "data", "describe", "synthetic")["users"] > 100
    assert call(["data", "list"]) == 0
    assert "movietweetings" in capsys.readouterr().out


def test_a_file_of_any_layout_is_imported_and_described(tmp_path, capsys):
    rows = ["who;what;when;how"]
    rows += [f"Ü{u};é{i};{1_600_000_000 + 60 * i};{'view' if i % 2 else 'buy'}" for u in range(5) for i in range(6)]
    (tmp_path / "log.csv").write_text("\n".join([*rows, "broken"]), encoding="utf-8")
    columns = ["--user", "who", "--item", "2", "--time", "when", "--event", "how"]
    weights = ["--event-weight", "view=1", "--event-weight", "buy=3"]
    command = ["data", "import", str(tmp_path / "log.csv"), "--name", "shop", *columns, *weights]
    report = answer(capsys, *command)
    assert (report["users"], report["items"], report["interactions"]) == (5, 6, 30)
    described = answer(capsys, "data", "describe", "shop")
    assert described["event_types"] == {"view": 15, "buy": 15}
    assert "shop" in {row["name"] for row in answer(capsys, "data", "list")}
    assert call(command) == 0
    assert "fedrecall run --dataset shop" in capsys.readouterr().out


def test_what_was_found_out_dropped_and_changed_is_said_in_a_few_lines(tmp_path, capsys):
    rows = ["user,item,time,qty", "101.0,x,1600000000,1", "101,y,1600000001,-1", "NaN,x,1600000002,1", "102,x,soon,1"]
    (tmp_path / "log.csv").write_bytes("\n".join([*rows, "broken"]).encode("utf-16"))
    command = ["data", "import", str(tmp_path / "log.csv"), "--name", "said", "--replace"]
    command += ["--user", "user", "--item", "item", "--time", "time"]
    assert call(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "Imported said: 2 events of 1 user on 2 items.",
        "Read: log.csv (separator comma, found out; utf-16, found out; times unix (detected)); 2020-09-13 12:26:40 to "
        "2020-09-13 12:26:41 UTC, in the order of time and then of the files.",
        "Dropped 3 of 5 rows: 1 malformed line (line 6: has 1 fields, expected 4); 1 missing field (line 4); 1 "
        "impossible time (line 5).",
        "Changed: 1 field holds NaN, null or the like and was taken as empty (--missing); 1 user id is a whole number "
        "and was written as such.",
        "Warning: 1 time cannot be read, such as text like 'a' (log.csv line 5).",
        "Warning: qty is below 0 in 1 of the kept rows (first: log.csv line 3): cancellations or returns? Leave them "
        "out with --where 'qty > 0'.",
        "Train on it: fedrecall run --dataset said",
    ]
    assert answer(capsys, *command, "--where", "qty > 0")["cleaning"]["filters"] == {"qty > 0": 1}


def test_the_index_is_built_searched_and_bound_to_its_table(released, capsys):
    folder, items = released
    built = answer(capsys, "index", "build", str(folder), "--kind", "flat")
    assert built["kind"] == "flat" and [built[f"recall@{k}"] for k in (10, 50, 100)] == [1.0, 1.0, 1.0]
    found = answer(capsys, "index", "search", str(folder), "--item", "item 4", "--k", "5")
    scores = items.vectors() @ items.vectors()[4]
    scores[4] = -np.inf
    best = np.argsort(-scores)[:5]
    assert [row["item"] for row in found["neighbours"]] == [items.ids[i] for i in best]
    assert [row["score"] for row in found["neighbours"]] == pytest.approx(scores[best], rel=1e-5)
    assert call(["index", "search", str(folder), "--item", "item 99"]) == 2
    index = (folder / "items.faiss").read_bytes()
    (folder / "items.faiss").write_bytes(index[:-1] + bytes([index[-1] ^ 1]))
    assert call(["index", "search", str(folder), "--item", "item 4"]) == 6
    (folder / "index.json").unlink()
    assert call(["index", "search", str(folder), "--item", "item 4"]) == 2
    (folder / "items.safetensors").write_bytes(b"{}")
    assert call(["index", "build", str(folder)]) == 6
    assert "items.safetensors" in capsys.readouterr().err


def test_an_index_that_finds_less_than_the_one_it_replaces_is_warned_of(released, capsys):
    folder, _ = released
    vectors = np.random.default_rng(6).standard_normal((4000, 8)).astype(np.float32)
    crowded = ItemTable.from_vectors(vectors, [str(i) for i in range(4000)])
    other = folder.parent / "crowded"
    write_release(other, model={}, items=crowded, round=1, plan_digest="0" * 64, ledger_head=None, simulated=True)
    assert answer(capsys, "index", "build", str(other))["replaced"] is None
    assert call(["index", "build", str(other), "--kind", "ivf"]) == 0
    err = capsys.readouterr().err
    assert "warning: ivf replaced flat" in err and "--kind flat" in err
    again = answer(capsys, "index", "build", str(other), "--kind", "ivf")
    assert again["replaced"]["kind"] == "ivf" and again["warning"] is None
    assert again["replaced"]["recall@10"] == again["recall@10"] < 1.0
    assert answer(capsys, "index", "build", str(other), "--kind", "flat")["warning"] is None
    # The index of another item table is no measure of this one, and neither is a damaged one.
    for name in ("items.faiss", "index.json"):
        (folder / name).write_bytes((other / name).read_bytes())
    assert answer(capsys, "index", "build", str(folder), "--kind", "sq8")["replaced"] is None
    (folder / "items.faiss").write_bytes(b"")
    assert answer(capsys, "index", "build", str(folder), "--kind", "sq8")["replaced"] is None


def test_calibrate_meets_the_anchor_of_the_closed_form(capsys):
    """Epsilon 8 at delta 1e-5 is mu 1.666 (docs/privacy.md, anchors), so 4 releases need sigma 2 / 1.666."""
    found = answer(capsys, "privacy", "calibrate", "--epsilon", "8", "--delta", "1e-5", "--steps", "4")
    assert found["noise_multiplier"] == pytest.approx(2 / 1.666, rel=2e-3)
    rows = {row["name"]: row for row in found["adversaries"]}
    assert 7.999 <= rows["released-model"]["epsilon"] <= 8.0
    assert rows["server"]["epsilon"] is None and rows["server"]["reason"]
    assert rows["network"]["accountant"] and rows["network"]["delta"] == 1e-5


def test_compare_pairs_the_same_people_and_says_why_it_cannot(tmp_path, capsys):
    rng = np.random.default_rng(3)
    a = rng.random(400) < 0.2
    b = a | (rng.random(400) < 0.1)
    first = write_run(tmp_path / "first", hits=a)
    better = write_run(tmp_path / "better", hits=b, epsilon=8.0)
    events = write_run(tmp_path / "events", hits=b, unit="interaction", epsilon=3.21)
    other = write_run(tmp_path / "other", hits=b, sha256="b" * 64)
    found = answer(capsys, "compare", *map(str, (first, better, events, other)))
    pair = found["differences"][0]["metrics"]["recall@10"]
    assert pair["difference"] == pytest.approx(b.mean() - a.mean())
    assert pair["wins"] == int((b & ~a).sum()) and pair["losses"] == 0
    assert 0 < pair["low"] < pair["difference"] < pair["high"]
    assert found["differences"][2]["reason"] == "different data (sha256)"
    assert [row["epsilon"]["released-model"] for row in found["runs"]] == [2.0, 8.0, 3.21, 2.0]
    assert not any("epsilon" in key for row in found["differences"] for key in row.get("metrics", row))


def test_compare_shows_epsilons_of_different_units_on_different_rows(tmp_path, capsys):
    users = write_run(tmp_path / "u", hits=[1, 0], epsilon=1.23456)
    events = write_run(tmp_path / "e", hits=[1, 1], unit="interaction", epsilon=3.21)
    assert call(["compare", str(users), str(events)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "epsilon (unit" in line]
    shown = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert ["epsilon (unit user) released-model", "1.235", ""] in shown
    assert ["epsilon (unit interaction) released-model", "", "3.210"] in shown
    assert ["epsilon (unit user) server", "no bound", ""] in shown


@pytest.mark.parametrize("change", [{"protocol": "temporal"}, {"protocol": "ncf", "seed": 1}, {"first_user": 1}])
def test_compare_does_not_pair_other_evaluations(change, tmp_path, capsys):
    first = write_run(tmp_path / "a", hits=[1, 0], **({"protocol": "ncf"} if "seed" in change else {}))
    second = write_run(tmp_path / "b", hits=[1, 1], **change)
    assert answer(capsys, "compare", str(first), str(second))["differences"][0]["reason"].startswith("different")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", b"{"),
        ("run.json", b"[]"),
        ("run.json", b"{}"),
        ("private/per_user.npz", b"PK"),
        ("private/per_user.npz", None),
    ],
)
def test_compare_calls_a_damaged_run_corrupt(file, content, tmp_path):
    first, second = (write_run(tmp_path / name, hits=[1, 0]) for name in "ab")
    whole = (second / file).read_bytes()
    (second / file).write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert call(["compare", str(first), str(second)]) == 6
