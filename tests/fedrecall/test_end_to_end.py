"""The main job through the real program: one process runs it, the other commands read what it left."""

import json
import re
import shutil

import pytest

from fedrecall.cli.app import call
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.plan import Plan

from ..simulations.runs.small_runs import flags, start_cli

EVERYTHING = (
    "evaluation.baselines=true",
    "evaluation.central=true",
    "evaluation.leak_probe=true",
    "evaluation.ablation=true",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDRECALL_CACHE", str(tmp_path / "cache"))


def answer(capsys, *arguments):
    """Run a command that must succeed; return its JSON after checking that it is one strict line."""
    code = call([*map(str, arguments), "--format", "json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.endswith("\n") and out.count("\n") == 1
    return json.loads(out, parse_constant=pytest.fail)


def refused(capsys, code, said, *arguments):
    assert call([*map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    assert said in err, err


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Run the main job as a user does; return its folder and its answer."""
    folder = tmp_path_factory.mktemp("end-to-end") / "run"
    command = ["run", "--dataset", "synthetic", "--out", folder, *flags(*EVERYTHING), "--format", "json"]
    out, err = (process := start_cli(*command)).communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.endswith("\n") and out.count("\n") == 1
    return folder, json.loads(out, parse_constant=pytest.fail), err


def test_the_answer_is_run_json_and_the_report_stands_beside_it(ran):
    folder, result, err = ran
    assert result == json.loads((folder / "run.json").read_text())
    assert result["baselines"]["ease"]["recall@50"] > result["baselines"]["most_popular"]["recall@50"]
    assert result["leak_probe"]["leaks"] is False
    page = (folder / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and page.count("<svg") >= 5
    assert not re.search(r"(src|href)=.?https?:", page), "the page needs no network"
    assert "Traceback" not in err


def test_evaluate_and_recommend_read_the_run(ran, capsys):
    folder, result, _ = ran
    found = answer(capsys, "evaluate", folder)
    assert found["metrics"] == result["metrics"] and found["as_recorded"] is True
    assert answer(capsys, "evaluate", folder, "--split", "validation")["metrics"] == result["validation"]
    shown = answer(capsys, "recommend", folder, "--user", "user-5", "--k", "3")
    assert len(shown["items"]) == 3 and shown["because_of"]
    assert call(["recommend", str(folder), "--user", "user-5", "--k", "3"]) == 0
    text = capsys.readouterr().out
    assert all(row["title"] in text for row in [*shown["items"], *shown["because_of"]])
    refused(capsys, 2, "look like 'a-9'", "recommend", folder, "--user", "user5")
    refused(capsys, 2, "--data-path is for", "evaluate", folder, "--data-path", folder)


def test_the_index_is_searched_and_built_again(ran, capsys):
    folder, result, _ = ran
    assert result["index"]["queries"] == "given" and result["index"]["recall@50"] == 1.0
    first = answer(capsys, "index", "search", folder, "--item", "item-3", "--k", "4")
    assert len(first["neighbours"]) == 4
    built = answer(capsys, "index", "build", folder, "--kind", "flat")
    assert built["sha256"] == result["index"]["sha256"]
    assert answer(capsys, "index", "search", folder, "--item", "item-3", "--k", "4") == first


def test_a_run_compared_with_its_copy_differs_in_nothing(ran, tmp_path, capsys):
    folder, result, _ = ran
    shutil.copytree(folder, tmp_path / "copy")
    found = answer(capsys, "compare", folder, tmp_path / "copy")
    assert found["runs"][0]["metrics"] == result["metrics"]
    assert found["differences"][0]["metrics"]["recall@10"]["difference"] == 0.0
    damaged = tmp_path / "copy" / "items.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    refused(capsys, 6, "items.safetensors", "evaluate", tmp_path / "copy")
    refused(capsys, 6, "items.safetensors", "recommend", tmp_path / "copy", "--user", "user-5")


def test_the_plan_is_the_one_that_was_promised_beforehand(ran, capsys):
    _, result, _ = ran
    promised = answer(capsys, "privacy", "plan", "--dataset", "synthetic", *flags(*EVERYTHING))
    assert promised["mechanisms"] == result["privacy"]["mechanisms"]
    assert promised["adversaries"] == result["privacy"]["adversaries"]
    assert promised["digest"] == result["privacy"]["plan_sha256"]


def test_a_second_run_into_the_folder_is_refused_and_resuming_returns_at_once(ran, capsys):
    folder, result, _ = ran
    command = ["run", "--dataset", "synthetic", "--out", folder, *flags(*EVERYTHING)]
    refused(capsys, 2, "add --resume", *command)
    refused(capsys, 2, "seed was 0 and is 5", *command, "--seed", "5", "--resume")
    assert answer(capsys, *command, "--resume") == result


def write_shop(folder):
    """Write events in UTF-8 with semicolons and without times, and a catalogue in Latin-1 with bars."""
    rows = ["nutzer;größe;aktion"]
    for u in range(40):
        rows += [f"Ü{u:02d} 中;ß{(u * 7 + i * (1 + u % 3)) % 30};{'kauf' if i % 3 else 'blick'}" for i in range(8)]
    rows += ["Einzel ☃;ß3;kauf", "Ü01 中;ß4;löschen", "Ü01 中;ß4"]
    (folder / "log.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    items = ["id|titel|art", *(f"ß{i}|Café Nº{i}|{'süß' if i % 2 else 'salé'}" for i in range(31))]
    (folder / "items.txt").write_bytes("\n".join(items).encode("latin-1"))
    columns = ["--user", "nutzer", "--item", "2", "--event", "aktion", "--sep", ";"]
    weights = ["--event-weight", "kauf=3", "--event-weight", "blick=1"]
    catalogue = ["--items", folder / "items.txt", "--item-id", "id", "--title", "titel", "--categories", "3"]
    encoding = ["--items-encoding", "latin-1"]
    return ["data", "import", folder / "log.txt", "--name", "laden", *columns, *weights, *catalogue, *encoding]


def test_a_layout_that_nobody_prepared_is_imported_run_and_searched(tmp_path, capsys):
    report = answer(capsys, *write_shop(tmp_path))
    assert (report["users"], report["items"], report["interactions"]) == (41, 31, 321)
    assert sum(report["cleaning"]["dropped"].values()) == 2, "an event without weight, and a line without an event"
    result = answer(capsys, "run", "--dataset", "laden", "--out", tmp_path / "run", *flags())
    assert result["dataset"]["users"] == 41 and result["evaluation"]["users"] == 40, "who has one event trains only"
    assert result["evaluation"]["notes"]["train_only_users"] == 1
    shown = answer(capsys, "recommend", tmp_path / "run", "--user", "Einzel ☃", "--k", "100")
    assert shown["because_of"] == [{"item": "ß3", "title": "Café Nº3"}]
    assert {row["item"] for row in shown["items"]} == {f"ß{i}" for i in range(31) if i != 3}
    never_seen = next(row for row in shown["items"] if row["item"] == "ß30")
    assert never_seen["title"] == "Café Nº30" and abs(never_seen["score"]) < 1e9
    assert len(answer(capsys, "index", "search", tmp_path / "run", "--item", "ß30", "--k", "3")["neighbours"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "-c", "rounds.cuont=3"], 2, "did you mean 'rounds.count'"),
        (["run", "--dataset", "synthetc"], 2, "did you mean 'synthetic'"),
        (["run", "--dataset", "ml-100k", "--data-path", "FOLDER"], 2, "u.data"),
        (["run", "--dataset", "synthetic", "--out", "FOLDER/log.txt"], 2, "is a file"),
        (["run", "--dataset", "synthetic", "--out", "FOLDER", "--resume"], 2, "holds no run"),
        (["run", "FOLDER/none.toml"], 2, "none.toml"),
        (
            ["data", "import", "FOLDER/log.txt", "--name", "x", "--user", "nutzr", "--item", "2"],
            2,
            "did you mean 'nutzer'",
        ),
        (["data", "import", "FOLDER/empty.csv", "--name", "x", "--user", "1", "--item", "2"], 2, "empty"),
        (["data", "import", "FOLDER/gone.csv", "--name", "x", "--user", "1", "--item", "2"], 2, "gone.csv"),
        (["evaluate", "FOLDER"], 2, "run.json"),
        (["recommend", "FOLDER/gone", "--user", "1"], 2, "run.json"),
    ],
)
def test_bad_input_is_named_with_its_remedy_and_leaves_nothing(arguments, code, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "given"
    folder.mkdir()
    write_shop(folder)
    (folder / "empty.csv").write_text("")
    before = sorted(tmp_path.rglob("*"))
    refused(capsys, code, said, *(text.replace("FOLDER", str(folder)) for text in arguments))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_data_set_in_which_nobody_can_be_evaluated_is_refused(tmp_path, capsys):
    (tmp_path / "one.csv").write_text("user,item\n" + "".join(f"u{u},i{u % 3}\n" for u in range(9)))
    answer(capsys, "data", "import", tmp_path / "one.csv", "--name", "one", "--user", "user", "--item", "item")
    refused(capsys, 2, "longer histories", "run", "--dataset", "one", "--out", tmp_path / "run", *flags())
    assert not (tmp_path / "run").exists()


def test_a_corrupt_cache_is_named_with_its_remedy(tmp_path, capsys):
    answer(capsys, *write_shop(tmp_path))
    stored = tmp_path / "cache" / "imported" / "laden" / "events.parquet"
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    command = ["run", "--dataset", "laden", "--out", tmp_path / "run", *flags()]
    refused(capsys, 6, "events.parquet is not the file that was stored", *command)
    assert call([*map(str, command)]) == 6 and "--replace" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_is_refused_as_soon_as_its_budget_is_spent(tmp_path, capsys):
    """A ledger that is already spent to its horizon with other noise keys allows no further round."""
    command = ["run", "--dataset", "synthetic", "--out", tmp_path / "run", *flags("rounds.count=1")]
    answer(capsys, *command)
    for name in ("run.json", "manifest.json"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    path = tmp_path / "run" / "ledger.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    path.unlink(), path.with_name("ledger.jsonl.head").unlink()
    plan = Plan.from_dict(first["plan"])
    Ledger.create(path, plan).charge("popularity", 0, "another noise")
    refused(capsys, 4, "popularity has spent all of its 1 releases", *command, "--resume")
