"""A whole run in one process: its contract, its determinism, its two engines, and the run opened again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedrecall.models.recall import ITEM_ID
from fedrecall.privacy.accounting.accounting import account
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.plan import Plan
from fedrecall.server.recall.release import load_release
from fedrecall.server.training.checkpoint import load_latest
from fedrecall.simulations.config import to_toml
from fedrecall.simulations.data.importing.import_spec import ImportSpec
from fedrecall.simulations.data.importing.importer import import_files
from fedrecall.simulations.runs.inspect import evaluate_run, recommend
from fedrecall.simulations.runs.run import run
from fedrecall.simulations.runs.wiring import prepare, recaller
from fedrecall.simulations.training.loop import load_towers

from .small_runs import import_small, leftovers, small_config, small_run

WHOLE = (
    "evaluation.central=true",
    "evaluation.ablation=true",
    "evaluation.leak_probe=true",
    "local.tower_learning_rate=0.1",
)
RELEASE = ("model.safetensors", "items.safetensors")


def quiet(*_):
    pass


def released(folder):
    return {name: (folder / name).read_bytes() for name in RELEASE}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run with everything but the baselines; read, never changed."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    stages = []
    config = small_config(
        "evaluation.central=true",
        "evaluation.ablation=true",
        "evaluation.leak_probe=true",
        "local.tower_learning_rate=0.1",
    )
    result = run(config, out=folder, progress=lambda *said: stages.append(said))
    return folder, result, stages


def test_run_json_holds_what_the_contract_lists_as_strict_json(finished):
    folder, result, _ = finished
    found = json.loads((folder / "run.json").read_text(), parse_constant=pytest.fail)
    assert found == json.loads(json.dumps(result))
    shape = {
        "dataset": {"name": str, "users": int, "items": int, "interactions": int, "sha256": str},
        "evaluation": {"protocol": str, "context": str, "catalogue": str, "masked": str},
        "privacy": {"unit": str, "trust": str, "simulated": bool, "mechanisms": list, "adversaries": list},
        "metrics": {},
        "validation": {},
        "history": [{"round": int, "recall@50": float, "epsilon": dict}],
        "baselines": {},
        "communication": {
            "uplink_bytes_per_device_round": int,
            "downlink_bytes_per_device_round": int,
            "uplink_bytes_per_device_total": int,
        },
        "timing": {"wall_s": float, "train_s": float, "device_rounds_per_s": float, "peak_rss_mb": float},
        "versions": {"fedrecall": str, "torch": str, "opacus": str, "python": str},
        "seed": int,
        "config": {"data": dict, "privacy": dict},
    }
    assert_shape(found, shape)
    assert_shape(
        found["privacy"]["mechanisms"],
        [{"name": str, "sample_rate": float, "noise_multiplier": float, "clip_norm": float, "steps": int}],
    )
    texts = ("name", "adjacency", "sampling", "accountant", "reason")
    assert_shape(found["privacy"]["adversaries"], [dict.fromkeys(texts, str) | {"delta": float}])
    names = {f"{kind}@10" for kind in ("recall", "ndcg", "mrr", "coverage", "gini", "novelty", "diversity")}
    assert names | {"recall@50"} <= set(found["metrics"])
    assert set(found["baselines"]) >= {"most_popular", "item_knn", "ease", "central", "local_only"}
    assert found["baselines"]["ease"] is None and "recall@10" in found["baselines"]["central"]
    epsilons = {row["name"]: row["epsilon"] for row in found["privacy"]["adversaries"]}
    assert 7.9 < epsilons["released-model"] <= 8.0 and epsilons["server"] is None
    assert [row["round"] for row in found["history"]] == [0, 2, 4]
    parts = ("the start", "second moments", "public content", "the rounds", "the user tower")
    assert set(found["ablation"]) == {"full run", *(f"without {part}" for part in parts)}
    assert found["ablation"]["full run"] == found["metrics"]
    assert len({row["recall@50"] for row in found["ablation"].values()}) > 1


def assert_shape(value, shape):
    if isinstance(shape, dict):
        for key, wanted in shape.items():
            assert key in value, key
            assert_shape(value[key], wanted)
    elif isinstance(shape, list):
        assert value
        for row in value:
            assert_shape(row, shape[0])
    else:
        assert isinstance(value, shape), (value, shape)


def test_the_folder_holds_what_the_contract_lists(finished):
    folder, _, _ = finished
    names = {"run.json", "report.html", "config.toml", "manifest.json", "ledger.jsonl", *RELEASE}
    assert names | {"checkpoints", "logs", "private"} <= {path.name for path in folder.iterdir()}
    assert not leftovers(folder)
    assert "<svg" in (folder / "report.html").read_text()
    outside = b"".join(p.read_bytes() for p in folder.iterdir() if p.is_file())
    assert b"user-17" not in outside, "a user's identifier left private/"
    assert not (folder / "private" / "ablation").exists()


def test_every_stage_reports_progress_and_ends(finished):
    folder, _, stages = finished
    ended = {stage for stage, done, total in stages if done == total}
    seen = {stage for stage, _, _ in stages}
    assert seen == ended
    wanted = {"plan", "start", "rounds", "evaluate this run", "central", "evaluate central", "index", "report"}
    assert wanted <= seen
    logged = (folder / "logs" / "run.log").read_text()
    assert "rounds: 4 in" in logged and "report: 1 in" in logged


def test_epsilon_follows_from_the_ledger_alone(finished):
    folder, result, _ = finished
    plan = Plan.from_dict(json.loads((folder / "ledger.jsonl").read_text().splitlines()[0])["plan"])
    ledger = Ledger.open(folder / "ledger.jsonl", plan)
    assert ledger.spent() == {"popularity": 1, "second_moments": 1, "rounds": 4}
    rows = {row.name: row.epsilon for row in account(ledger.spent_plan())}
    assert rows == {row["name"]: row["epsilon"] for row in result["privacy"]["adversaries"]}
    assert load_release(folder).manifest.ledger_head == ledger.head().sha256


def test_the_released_model_is_that_of_the_last_round_whatever_validation_says(finished):
    folder, _, _ = finished
    last = load_latest(folder / "checkpoints")
    arrays = {**last.arrays, **(last.average.arrays if last.average else {})}
    release = load_release(folder)
    assert release.manifest.round == last.round == 4
    assert set(release.model) == set(arrays) - {ITEM_ID}
    for name, array in release.model.items():
        np.testing.assert_array_equal(array, arrays[name])
    table = ItemTable.from_vectors(arrays[ITEM_ID].astype(np.float32), release.items.ids)
    assert table.to_bytes() == release.items.to_bytes()


def test_the_same_seed_gives_the_same_release_and_another_seed_another(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        small_run(tmp_path / name, "rounds.count=2", seed=seed)
    a, b, c = (released(tmp_path / name) for name in "abc")
    assert a == b
    assert all(a[name] != c[name] for name in RELEASE)
    one, two = (json.loads((tmp_path / name / "run.json").read_text()) for name in "ab")
    for part in (one, two):
        part.pop("timing"), part["index"].pop("build_s")
    assert one == two


@pytest.mark.parametrize("epsilon", ["null", "8.0"])
def test_both_engines_release_the_same_model(epsilon, small_dataset, cache, tmp_path):
    """The server's noise is the same seeded noise for both, so that only rounding may differ."""
    import_small(small_dataset, tmp_path)
    settings = (
        f"privacy.epsilon={epsilon}",
        "rounds.count=2",
        "server.optimiser=sgd",
        "server.learning_rate=1.0",
        "local.tower_learning_rate=0.1",
    )
    cohort, device = (
        small_run(tmp_path / engine, *settings, engine=engine, dataset="small") for engine in ("cohort", "device")
    )
    batched, single = load_release(tmp_path / "cohort"), load_release(tmp_path / "device")
    for name, array in batched.model.items():
        np.testing.assert_allclose(single.model[name], array, atol=1e-5, err_msg=name)
    first, *_, last = cohort["history"]
    assert first["ndcg@50"] != last["ndcg@50"], "the rounds must have done something"
    # A rounding may swap two neighbours in the list of one of 120 people.
    assert device["metrics"] == pytest.approx(cohort["metrics"], abs=1.5 / 120)
    assert device["communication"] == cohort["communication"]


def test_a_finished_run_is_returned_at_once_and_its_folder_is_not_taken_by_another(finished):
    folder, result, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    config = small_config(
        "evaluation.central=true",
        "evaluation.ablation=true",
        "evaluation.leak_probe=true",
        "local.tower_learning_rate=0.1",
    )
    assert run(config, out=folder, resume=True, progress=pytest.fail) == json.loads(json.dumps(result))
    with pytest.raises(UsageError, match="add --resume"):
        run(config, out=folder, progress=pytest.fail)
    other = config.model_copy(update={"seed": 9})
    with pytest.raises(UsageError, match="seed was 0 and is 9"):
        run(other, out=folder, resume=True, progress=pytest.fail)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_runs_latest_follows_the_newest_run_and_survives_being_resumed_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small_config("rounds.count=1")
    with pytest.raises(UsageError, match="no runs/latest"):
        run(config, resume=True, progress=quiet)
    run(config, progress=quiet)
    (first,) = (path for path in (tmp_path / "runs").iterdir() if path.name != "latest")
    assert (tmp_path / "runs" / "latest").resolve() == first
    (first / "run.json").unlink()
    run(config, out=Path("runs/latest"), resume=True, progress=quiet)
    assert (tmp_path / "runs" / "latest").resolve() == first and (first / "run.json").exists()
    second = run(small_config("rounds.count=1", seed=1), out=Path("runs/second"), progress=quiet)
    assert (tmp_path / "runs" / "latest").resolve().name == "second"
    assert run(small_config("rounds.count=1", seed=1), resume=True, progress=quiet) == json.loads(json.dumps(second))
    (tmp_path / "runs" / "latest").unlink()
    with pytest.raises(UsageError, match="link to the newest run"):
        run(config, out=Path("runs/latest"), progress=quiet)


def test_the_run_folder_says_nothing_of_where_the_data_lay(data_folder, tmp_path):
    folder = data_folder("ml-100k")
    config = small_config("rounds.count=1", dataset="ml-100k", data_path=folder)
    run(config, out=tmp_path / "r", progress=quiet)
    public = [p for p in (tmp_path / "r").rglob("*") if p.is_file() and "private" not in p.parts]
    assert not [p for p in public if str(folder).encode() in p.read_bytes()]


def test_evaluating_again_gives_the_very_figures_of_run_json(finished):
    folder, result, _ = finished
    for split, part in (("test", "metrics"), ("validation", "validation")):
        found = evaluate_run(folder, split, quiet)
        assert found["metrics"] == result[part] and found["as_recorded"]
    assert found["users"] == 600 and set(found["groups"]) == {"activity", "segment"}


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (lambda f: flip(f / "items.safetensors"), CorruptArtefact, "items.safetensors"),
        (lambda f: flip(f / "model.safetensors"), CorruptArtefact, "model.safetensors"),
        (lambda f: (f / "manifest.json").unlink(), CorruptArtefact, "manifest.json"),
        (lambda f: (f / "run.json").unlink(), UsageError, "run.json"),
        (lambda f: (f / "config.toml").write_text("seed = 9\n"), CorruptArtefact, "config.toml"),
        (lambda f: shutil.rmtree(f / "private"), CorruptArtefact, "private"),
        (lambda f: flip(next((f / "private").glob("devices-*4.safetensors")), 3), CorruptArtefact, "devices-"),
    ],
)
def test_a_damaged_run_is_not_evaluated(finished, tmp_path, damage, error, said):
    shutil.copytree(finished[0], tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(error, match=said):
        evaluate_run(tmp_path / "copy", "test", quiet)


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_data_that_moved_is_asked_for_and_other_data_refused(tmp_path, data_folder):
    source = tmp_path / "data"
    shutil.copytree(data_folder("ml-100k"), source)
    config = small_config("rounds.count=0", "personal.steps=0", dataset="ml-100k", data_path=source)
    result = run(config, out=tmp_path / "r", progress=quiet)
    source.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="--data-path"):
        evaluate_run(tmp_path / "r", "test", quiet)
    found = evaluate_run(tmp_path / "r", "test", quiet, data_path=tmp_path / "moved")
    assert found["metrics"] == result["metrics"]
    lines = (tmp_path / "moved" / "u.data").read_text().splitlines()
    (tmp_path / "moved" / "u.data").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UsageError, match="not the data"):
        evaluate_run(tmp_path / "r", "test", quiet, data_path=tmp_path / "moved")
    (tmp_path / "r" / "run.json").unlink()
    with pytest.raises(UsageError, match="other data"):
        run(
            config.model_copy(update={"data": config.data.model_copy(update={"path": tmp_path / "moved"})}),
            out=tmp_path / "r",
            resume=True,
            progress=quiet,
        )


def test_recommendations_are_the_best_products_without_what_the_device_has(finished):
    folder, _, _ = finished
    config = small_config("local.tower_learning_rate=0.1")
    _, split, world = prepare(config, quiet)
    release = load_release(folder)
    model = recaller(world, release.model, release.items, load_towers(folder, 4), name="x")
    scores = model.queries(np.array([17]), split.test_context)[0].astype(np.float64) @ release.items.vectors().T
    had = split.test_context.history(17)
    scores[had] = -np.inf
    found = recommend(folder, "user-17", 7, quiet)
    assert [row["item"] for row in found["items"]] == [f"item-{i}" for i in np.argsort(-scores)[:7]]
    assert [row["score"] for row in found["items"]] == pytest.approx(np.sort(scores)[::-1][:7], rel=1e-5)
    assert found["items"][0]["title"].startswith("Item ")
    assert [row["item"] for row in found["because_of"]] == [f"item-{i}" for i in had[::-1][:5]]
    everything = recommend(folder, "user-17", 1000, quiet)
    assert len(everything["items"]) == 400 - len(set(had.tolist()))
    with pytest.raises(UsageError, match=r"among the \d+ users .* look like 'a-9'") as caught:
        recommend(folder, "User-17", 7, quiet)
    assert "user-" not in str(caught.value), "nobody else's identifier is shown"


def test_a_run_that_recommends_repeats(cache, tmp_path):
    """A shop where everybody buys a few things again and again: reorders are shown, looked for, and told apart."""
    rng = np.random.default_rng(0)
    own = [rng.choice(120, size=6, replace=False) for _ in range(80)]
    bought = [
        [*rng.choice(items, size=19), rng.integers(120) if u % 4 == 0 else items[0]] for u, items in enumerate(own)
    ]
    lines = [f"u{u},i{item},{1_600_000_000 + n}" for u, items in enumerate(bought) for n, item in enumerate(items)]
    (tmp_path / "shop.csv").write_text("\n".join(["user,item,time", *lines]) + "\n")
    import_files(ImportSpec(files=(tmp_path / "shop.csv",), name="shop", user="user", item="item", time="time"))
    settings = ("data.repeats=recommend", "evaluation.baselines=true", "evaluation.leak_probe=true")
    result = small_run(tmp_path / "r", *settings, dataset="shop")
    known = sum(items[-1] in items[:-1] for items in bought)
    evaluation = result["evaluation"]
    assert evaluation["repeats"] == "recommend" and evaluation["notes"]["test_items_known_before"] == known
    assert {key: part["count"] for key, part in evaluation["by_novelty"].items()} == {"again": known, "new": 80 - known}
    whole = sum(part["count"] * part["recall@10"] for part in evaluation["by_novelty"].values()) / 80
    assert whole == pytest.approx(result["metrics"]["recall@10"])
    assert "leak_probe" not in result and result["dataset"]["repeats"] > 0.6
    assert result["baselines"]["own_first"]["recall@10"] == pytest.approx(known / 80, abs=0.05)
    page = (tmp_path / "r" / "report.html").read_text()
    assert "the last event of each person with at least 3, whether or not its item was met before" in page
    assert f"of the {known} that the person had before and" in page and "each person&#39;s own items first" in page
    found = recommend(tmp_path / "r", "u7", 1000, quiet)
    assert found["repeats"] == "recommend" and len(found["items"]) == result["dataset"]["items"]
    assert evaluate_run(tmp_path / "r", "test", quiet)["as_recorded"]


@pytest.mark.parametrize("protocol", ["random", "given"])
def test_a_run_of_other_hold_outs(cache, tmp_path, protocol):
    rng = np.random.default_rng(1)
    parts = {"train": [], "validation": [], "test": []}
    for user in range(40):
        items = rng.choice(60, size=8, replace=False)
        for part, chosen in zip(parts, (items[:5], items[5:6], items[6:]), strict=True):
            parts[part] += [f"u{user},i{item}" for item in chosen]
    for part, rows in parts.items():
        (tmp_path / part).write_text("\n".join(["user,item", *rows]) + "\n")
    files = {f"{part}_files": (tmp_path / part,) for part in ("validation", "test")}
    import_files(ImportSpec(files=(tmp_path / "train",), **files, name="parts", user="user", item="item"))
    result = small_run(tmp_path / "r", dataset="parts", protocol=protocol)
    said = {"random": "drawn at random", "given": "the 80 events of the given test file"}
    assert said[protocol] in result["evaluation"]["held_out"]
    assert said[protocol] in (tmp_path / "r" / "report.html").read_text()
    assert result["evaluation"]["users"] == 40
    assert evaluate_run(tmp_path / "r", "test", quiet)["as_recorded"]


def test_an_empty_history_gets_what_is_popular(tmp_path):
    """Under `temporal` many devices have no event yet; without noise the first model holds popularity exactly."""
    config = small_config("rounds.count=0", "privacy.epsilon=null", protocol="temporal")
    run(config, out=tmp_path / "r", progress=quiet)
    dataset, split, _ = prepare(config, quiet)
    silent = int(split.test.users[split.test_context.counts()[split.test.users] == 0][0])
    found = recommend(tmp_path / "r", dataset.user_ids[silent], 10, quiet)
    assert found["because_of"] == []
    weights = 1 / np.sqrt(np.maximum(split.train.counts(), 1))  # a device's events share a norm of 1
    popular = np.bincount(split.train.items, weights=weights[split.train.users()], minlength=400)
    shown = np.array([int(row["item"].removeprefix("item-")) for row in found["items"]])
    assert popular[shown].min() >= 0.95 * np.sort(popular)[-10], "the table keeps 8 bits of each number"


@pytest.mark.parametrize("torn", [b"", b'{"digest": "12'])
def test_a_ledger_that_was_killed_in_its_first_line_is_started_again(torn, tmp_path):
    config = small_config("rounds.count=1")
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.toml").write_text(to_toml(config))
    (tmp_path / "r" / "ledger.jsonl").write_bytes(torn)
    (tmp_path / "r" / ".config.toml.x1.tmp").write_bytes(b"seed")
    run(config, out=tmp_path / "r", resume=True, progress=quiet)
    run(config, out=tmp_path / "whole", progress=quiet)
    assert released(tmp_path / "r") == released(tmp_path / "whole")
    assert (tmp_path / "r" / "ledger.jsonl").read_bytes() == (tmp_path / "whole" / "ledger.jsonl").read_bytes()
    assert not leftovers(tmp_path / "r")


@pytest.mark.parametrize("names", [["ledger.jsonl"], ["ledger.jsonl", "ledger.jsonl.head"]])
def test_a_ledger_that_is_gone_is_missed_and_not_started_again(names, tmp_path):
    config = small_config("rounds.count=1")
    run(config, out=tmp_path / "r", progress=quiet)
    for name in ["run.json", *names]:
        (tmp_path / "r" / name).unlink()
    with pytest.raises(CorruptArtefact, match="ledger"):
        run(config, out=tmp_path / "r", resume=True, progress=quiet)


def test_a_temporal_run_reports_new_users_and_new_items_apart(tmp_path):
    result = small_run(tmp_path / "run", "data.protocol=temporal", "rounds.count=1")
    new = result["evaluation"]["new"]
    assert set(new) == {"users", "items"}
    for part in new.values():
        assert part["count"] == 0 or 0.0 <= part["recall@10"] <= part["recall@50"] <= 1.0
