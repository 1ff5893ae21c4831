"""fedrecall as a Python program uses it: a frame in, a run, its results out; the same as by commands."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

import fedrecall
from fedrecall.cli.app import call
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.protocol.errors import ConfigError, CorruptArtefact, PlanError, UsageError
from fedrecall.simulations.data.synthetic import synthetic_dataset

from ..house import ROOT
from .commands import answer

SETTINGS: dict[str, Any] = {
    "threads": 1,
    "model.dim": 8,
    "model.window": 12,
    "model.blocks": 1,
    "model.hidden": 16,
    "local.negatives": 32,
    "personal.steps": 1,
    "personal.negatives": 32,
    "rounds.count": 2,
    "rounds.evaluate_every": 1,
    "evaluation.central": False,
    "evaluation.ablation": False,
    "evaluation.leak_probe": False,
}


class Recorder:
    """A callback that keeps what it is told."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.rows: list[Any] = []
        self.ended: list[Any] = []

    def begin(self, config: Any) -> None:
        self.begun.append(config)

    def measured(self, row: Any) -> None:
        self.rows.append(dict(row))

    def end(self, result: Any) -> None:
        self.ended.append(result)


def frame_of(dataset: fedrecall.Dataset) -> pa.Table:
    """Return the events of a data set as a frame, in an order of time that is not the order of users."""
    events = dataset.events
    rows = pa.table({"user": events.users(), "item": events.items, "time": events.times})
    return rows.sort_by([("time", "ascending"), ("user", "ascending")])


@pytest.fixture(scope="module")
def data() -> fedrecall.Dataset:
    made = synthetic_dataset(users=120, items=96, events_per_user=12, tastes=4, seed=7)
    return fedrecall.dataset_from_frame(frame_of(made), user="user", item="item", time="time", name="shop")


@pytest.fixture(scope="module")
def finished(data: fedrecall.Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[fedrecall.Run, Recorder]:
    """One run of a frame, with its baselines, watched; read, never changed."""
    told = Recorder()
    folder = tmp_path_factory.mktemp("python") / "run"
    return fedrecall.run(data, settings=SETTINGS, out=folder, callbacks=[told]), told


def test_the_import_loads_nothing_and_every_name_is_there() -> None:
    code = "import sys, fedrecall; print(*sys.modules); print(*dir(fedrecall))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    modules, names = (set(line.split()) for line in done.stdout.splitlines())
    assert not modules & {"torch", "flwr", "numpy", "pyarrow", "pydantic", "typer"}
    wanted = {"run", "load_run", "RunConfig", "load_dataset", "dataset_from_frame", "audit", "ItemTable", "Device"}
    assert wanted | {"privacy"} <= set(fedrecall.__all__) <= names
    assert all(getattr(fedrecall, name) is getattr(fedrecall, name) for name in fedrecall.__all__)
    assert fedrecall.privacy is sys.modules["fedrecall.privacy"]
    with pytest.raises(AttributeError, match="it has"):
        _ = fedrecall.rnu  # type: ignore[attr-defined]


def test_privacy_answers_in_plain_numbers() -> None:
    """4 releases at mu amount to 2 mu: the closed form, as docs/privacy.md anchors it."""
    mu = gaussian_mu(8.0, 1e-5)
    assert fedrecall.privacy.calibrate(8.0, 1e-5, 4) == pytest.approx(2 / mu, rel=1e-3)
    plan = fedrecall.privacy.plan(delta=1e-5, steps=4, noise_multiplier=2 / mu)
    rows = {row.name: row.epsilon for row in fedrecall.privacy.account(plan)}
    assert rows["released-model"] == pytest.approx(8.0, abs=2e-3) and rows["server"] is None
    (fit,) = fedrecall.privacy.fit(943, 8.0, sampling="everyone", min_rounds=10, max_rounds=10, most=1)
    assert fit.noise_multiplier == pytest.approx(np.sqrt(10) / mu, rel=1e-3) and fit.plan.delta == 1e-5
    with pytest.raises(PlanError, match="give one of them"):
        fedrecall.privacy.plan(delta=1e-5, steps=4)
    with pytest.raises(AttributeError, match="it has"):
        _ = fedrecall.privacy.paln  # type: ignore[attr-defined]


def test_a_frame_runs_as_an_import_of_its_rows_does(
    finished: tuple[fedrecall.Run, Recorder], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    rows = frame_of(synthetic_dataset(users=120, items=96, events_per_user=12, tastes=4, seed=7)).to_pylist()
    (tmp_path / "log.csv").write_text("u,i,t\n" + "".join(f"{r['user']},{r['item']},{r['time']}\n" for r in rows))
    columns = ["--user", "u", "--item", "i", "--time", "t"]
    answer(capsys, "data", "import", str(tmp_path / "log.csv"), "--name", "shop", *columns)
    said = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={json.dumps(value)}")]
    result = answer(capsys, "run", "--dataset", "shop", "--out", str(tmp_path / "run"), *said)
    assert result["metrics"] == run.metrics and result["privacy"] == run.result["privacy"]
    assert (tmp_path / "run" / "items.safetensors").read_bytes() == (run.folder / "items.safetensors").read_bytes()


def test_results_are_those_of_run_json(finished: tuple[fedrecall.Run, Recorder], data: fedrecall.Dataset) -> None:
    run, _ = finished
    saved = json.loads((run.folder / "run.json").read_text())
    assert run.metrics == saved["metrics"]
    assert [row["epsilon"] for row in run.privacy] == [row["epsilon"] for row in saved["privacy"]["adversaries"]]
    assert {row["unit"] for row in run.privacy} == {"user"}
    assert run.table.ids == data.catalogue.ids
    quality = {row.pop("who"): row for row in run.frame("quality").to_pylist()}
    assert quality["this run"] == pytest.approx(saved["metrics"])
    assert quality["ease"]["recall@10"] == saved["baselines"]["ease"]["recall@10"] and "central" not in quality
    history = run.frame("history")
    assert history["recall@10"].to_pylist() == [row["recall@10"] for row in saved["history"]]
    assert history["epsilon/network"].to_pylist() == [row["epsilon"]["network"] for row in saved["history"]]
    people = run.frame("people").to_pylist()
    assert np.mean([row["recall@10"] for row in people]) == pytest.approx(run.metrics["recall@10"])
    assert {row["user"] for row in people} <= set(data.user_ids)
    assert run.frame("privacy")["name"].to_pylist() == [row["name"] for row in run.privacy]
    with pytest.raises(UsageError, match="choose quality"):
        run.frame("qualty")


def test_a_picture_is_an_svg_file_with_the_figures(finished: tuple[fedrecall.Run, Recorder], tmp_path: Path) -> None:
    run, _ = finished
    run.picture(tmp_path / "recall.svg")
    root = ElementTree.parse(tmp_path / "recall.svg").getroot()
    assert root.tag.endswith("svg") and f"{run.metrics['recall@10']:.3f}" in ElementTree.tostring(root, "unicode")
    with pytest.raises(UsageError, match="recall@50"):
        run.picture(tmp_path / "x.svg", "recal@10")


def test_commands_open_the_run_of_a_frame_and_say_the_same(
    finished: tuple[fedrecall.Run, Recorder], data: fedrecall.Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    assert answer(capsys, "evaluate", str(run.folder))["as_recorded"]
    user = data.user_ids[5]
    said = answer(capsys, "recommend", str(run.folder), "--user", user, "--k", "7")
    assert said["items"] == run.recommend(user, 7) == run.recommend(int(user), 7)
    opened = fedrecall.load_run(run.folder)
    assert opened.metrics == run.metrics and opened.recommend(user, 7) == said["items"]
    with pytest.raises(UsageError, match="not among the 120 users"):
        run.recommend("nobody")


def test_a_stopped_run_of_a_frame_goes_on_by_its_folder_alone(
    finished: tuple[fedrecall.Run, Recorder], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    folder = tmp_path / "copy"
    shutil.copytree(run.folder, folder)
    (folder / "run.json").unlink()
    assert answer(capsys, "run", "--resume", "--out", str(folder))["metrics"] == run.metrics
    (folder / "run.json").unlink()
    assert fedrecall.run(out=folder, resume=True).metrics == run.metrics
    kept = next((folder / "private" / "data").glob("events*"))
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptArtefact, match="not the file"):
        fedrecall.load_run(folder).recommend_all()


def test_callbacks_are_told_every_row_and_change_nothing(
    finished: tuple[fedrecall.Run, Recorder], data: fedrecall.Dataset, tmp_path: Path
) -> None:
    run, told = finished
    assert told.begun == [run.result["config"]] and told.rows == run.result["history"] and told.ended == [run.result]
    assert [row["round"] for row in told.rows] == [0, 1, 2]
    alone = fedrecall.run(data, settings=SETTINGS | {"evaluation.baselines": False}, out=tmp_path / "alone")
    assert alone.metrics == run.metrics
    assert (tmp_path / "alone" / "items.safetensors").read_bytes() == (run.folder / "items.safetensors").read_bytes()


def test_what_is_held_out_is_the_runs_choice_and_data_in_parts_are_kept_in_parts(
    data: fedrecall.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each person's last events are the test, the ones before for validation; the folder alone finds them again."""
    sizes = data.events.counts()
    from_end = np.concatenate([np.arange(size, 0, -1) for size in sizes])
    parts = np.select([from_end <= 2, from_end <= 4], [2, 1], 0).astype(np.int8)
    settings = SETTINGS | {"data.protocol": "given", "data.repeats": "recommend", "evaluation.baselines": False}
    run = fedrecall.run(replace(data, parts=parts), settings=settings, out=tmp_path / "run")
    assert "given test file" in run.result["evaluation"]["held_out"]
    assert answer(capsys, "evaluate", str(run.folder))["as_recorded"]
    lists = fedrecall.load_run(run.folder).recommend_all(k=1000)
    assert lists.num_rows == len(sizes) * len(data.catalogue)


def test_settings_are_checked_and_data_are_read_once(data: fedrecall.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean"):
        fedrecall.run(data, settings={"privacy.epsilno": 1}, out=tmp_path / "a")
    with pytest.raises(UsageError, match=r"data\.k_core beside data"):
        fedrecall.run(data, settings={"data.k_core": 5}, out=tmp_path / "a")
    config = fedrecall.load_config(preset="open")
    with pytest.raises(UsageError, match="give one of them"):
        fedrecall.run(data, config=config, preset="open", out=tmp_path / "a")
    with pytest.raises(UsageError, match=r"no run\.json"):
        fedrecall.load_run(tmp_path)
    with pytest.raises(UsageError, match=r"no run\.json"):
        fedrecall.audit(tmp_path)
    assert not (tmp_path / "a").exists()


def test_a_whole_configuration_runs_as_its_settings_do(
    finished: tuple[fedrecall.Run, Recorder], data: fedrecall.Dataset, tmp_path: Path
) -> None:
    run, _ = finished
    config = fedrecall.load_config(settings=SETTINGS | {"data.name": "shop", "evaluation.baselines": False})
    again = fedrecall.run(data, config=config, settings={"seed": 0}, out=tmp_path / "again")
    assert isinstance(config, fedrecall.RunConfig) and again.metrics == run.metrics
    assert call(["run", "--resume", "--out", str(tmp_path / "again")]) == 0
