"""What trackers are given, and the writers themselves where TensorBoard and MLflow are installed (extra ``track``)."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.tracking.callback import Callback
from fedrecall.simulations.tracking.mlflow import MLflow
from fedrecall.simulations.tracking.scalars import scalars
from fedrecall.simulations.tracking.tensorboard import TensorBoard

CONFIG = {"seed": 0, "rounds": {"count": 2, "train": ["item."]}, "privacy": {"epsilon": None}}
ROWS = [{"round": r, "recall@10": 0.1 * r, "epsilon": {"network": 1.0 + r, "server": None}} for r in range(3)]
RESULT = {"history": ROWS, "metrics": {"recall@10": 0.25}}


def play(callback: Callback) -> None:
    callback.begin(CONFIG)
    for row in ROWS:
        callback.measured(row)
    callback.end(RESULT)


def test_numbers_are_named_by_their_place_and_what_has_none_is_left_out() -> None:
    assert scalars(ROWS[1]) == {"round": 1, "recall@10": 0.1, "epsilon/network": 2.0}
    assert scalars({"a": {"b": True, "c": "x", "d": 2}}) == {"a/d": 2}
    assert scalars(CONFIG, all=True) == {
        "seed": 0,
        "rounds/count": 2,
        "rounds/train": ["item."],
        "privacy/epsilon": None,
    }


@pytest.mark.parametrize(("package", "writer"), [("tensorboard", TensorBoard), ("mlflow", MLflow)])
def test_a_writer_without_its_package_names_the_extra(package: str, writer: Any, tmp_path: Path) -> None:
    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(UsageError, match=r"fedrecall\[track\]"):
        writer(str(tmp_path))


@pytest.mark.filterwarnings("ignore")  # of the package's own
def test_tensorboard_reads_the_curves_back(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra track is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    play(TensorBoard(tmp_path))
    found = EventAccumulator(str(tmp_path)).Reload()
    curve = [(event.step, event.value) for event in found.Scalars("validation/recall@10")]
    assert curve == [(row["round"], pytest.approx(row["recall@10"])) for row in ROWS]
    assert "validation/epsilon/network" in found.Tags()["scalars"]
    assert [event.value for event in found.Scalars("test/recall@10")] == [0.25]


@pytest.mark.filterwarnings("ignore")  # of the package's own
def test_mlflow_keeps_the_run(tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra track is not installed")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    play(MLflow("test"))
    (run,) = mlflow.search_runs(experiment_names=["test"], output_format="list")
    assert run.data.metrics["test/recall_at_10"] == 0.25 and run.data.params["rounds/count"] == "2"
    steps = mlflow.MlflowClient().get_metric_history(run.info.run_id, "validation/recall_at_10")
    assert [(point.step, point.value) for point in steps] == [(row["round"], row["recall@10"]) for row in ROWS]
