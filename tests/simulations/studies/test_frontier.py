import json
import math
from pathlib import Path

import pytest

from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.simulations.config import load_config
from fedrecall.simulations.studies import frontier as module
from fedrecall.simulations.studies.frontier import cells, frontier, preset_for
from tests.simulations.runs.small_runs import SMALL, small_run


def test_every_epsilon_takes_the_nearest_tuned_preset() -> None:
    presets = {e: preset_for("user", e) for e in (0.5, 1, 1.3, 2, 3.9, 4.1, 16)}
    expected = {0.5: 1, 1: 1, 1.3: 1, 2: 2, 3.9: 2, 4.1: 8, 16: 8}
    assert presets == {e: f"user-eps{p}" for e, p in expected.items()}
    work = cells([3, 4], train_open=True)
    assert len(work) == 2 * (5 + 2 + 1)
    assert [n for n, (_, overrides, _) in work.items() if "evaluation.baselines=false" not in overrides] == [
        "user-8-seed3"
    ]
    for name, (preset, overrides, seed) in work.items():
        config = load_config(None, preset, overrides, dataset="synthetic", seed=seed)
        assert name.endswith(f"-seed{config.seed}")
        assert config.privacy.epsilon is None or name == f"{config.privacy.unit}-{config.privacy.epsilon:g}-seed{seed}"


def test_a_frontier_runs_once_and_says_what_its_runs_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EPSILONS", {"user": (8.0,), "interaction": (8.0,)})
    small = [o for o in SMALL if not o.startswith("evaluation.baselines")]
    monkeypatch.setattr(module, "_ALONE", ("evaluation.baselines=false", *small))

    def run() -> dict:
        return frontier("synthetic", None, tmp_path, [0, 1], opened=[], progress=lambda *_: None)

    found = run()
    reports = [json.loads((tmp_path / f"user-8-seed{s}" / "run.json").read_text()) for s in (0, 1)]
    values = [report["metrics"]["recall@10"] for report in reports]
    point = found["points"]["user"][0]
    assert point["mean"]["recall@10"] == pytest.approx(sum(values) / 2)
    assert (point["low"]["recall@10"], point["high"]["recall@10"]) == (min(values), max(values))
    assert found["lines"]["EASE"]["recall@50"] == reports[0]["baselines"]["ease"]["recall@50"]
    text = (tmp_path / "frontier.md").read_text()
    assert f"{point['mean']['recall@50']:.3f}" in text and "| unit interaction | 8 |" in text
    drawn = (tmp_path / "frontier.svg").read_text()
    assert "<svg" in drawn and "unit interaction" in drawn and "most popular" in drawn
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/run.json")}
    assert run() == found
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/run.json")} == stamps, "finished runs are not run again"

    def with_open(folder: Path) -> dict:
        return frontier("synthetic", None, tmp_path, [0, 1], opened=[folder], progress=lambda *_: None)

    with pytest.raises(UsageError, match="private"):
        with_open(tmp_path / "user-8-seed1")
    open_run = small_run(tmp_path / "open", preset="open")
    assert with_open(tmp_path / "open")["lines"]["open, federated"]["recall@50"] == open_run["metrics"]["recall@50"]

    path = tmp_path / "user-8-seed1" / "run.json"
    report = json.loads(path.read_text())
    for row in report["privacy"]["adversaries"]:
        row["epsilon"] = row["epsilon"] and row["epsilon"] / 2
    path.write_text(json.dumps(report))
    with pytest.raises(CorruptArtefact, match="its ledger gives"):
        run()
    assert math.isclose(reports[0]["privacy"]["adversaries"][0]["epsilon"], 8.0, abs_tol=1e-3)
