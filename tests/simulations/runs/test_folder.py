"""A run that goes on has the settings that it was started with, and finds its data where it read them."""

import pytest

from fedrecall.protocol.errors import UsageError
from fedrecall.simulations.config import load_config
from fedrecall.simulations.runs.folder import CONFIG, choose_folder, open_folder, resumed_settings

ASKED = ["rounds.count=7", "privacy.shares={popularity=0.5,second_moments=0.4,rounds=0.1}", "flower.shards=users"]


@pytest.fixture
def started(tmp_path, small_dataset):
    """Return the folder of a run that was started with other settings than the default, and these settings."""
    (tmp_path / "data").mkdir()
    config = load_config(
        None, "user-eps2", ASKED, dataset="ml-1m", data_path=tmp_path / "data", protocol="temporal", seed=5
    )
    open_folder(tmp_path / "run", config, small_dataset)
    return tmp_path / "run", config


def test_a_folder_alone_says_everything(started):
    folder, config = started
    assert resumed_settings(folder) == config
    assert choose_folder(resumed_settings(folder), folder, resume=True) == folder


def test_the_newest_run_is_meant_where_no_folder_is_named(tmp_path, monkeypatch, small_dataset):
    monkeypatch.chdir(tmp_path)
    config = load_config(None, "interaction-eps2", seed=3)
    open_folder(tmp_path / "runs" / "a", config, small_dataset)
    assert resumed_settings(None) == config


@pytest.mark.parametrize("overrides", [["seed=5"], ["rounds.count=7", "threads=2"], ASKED])
def test_the_same_settings_given_again_change_nothing(started, overrides):
    folder, config = started
    again = resumed_settings(folder, None, None, overrides, dataset="ml-1m")
    assert choose_folder(again, folder, resume=True) == folder
    assert again.model_copy(update={"threads": config.threads}) == config


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"overrides": ["rounds.count=8"]}, "rounds.count was 7 and is 8"),
        ({"seed": 6}, "seed was 5 and is 6"),
        ({"preset": "open"}, "data.name was 'ml-1m' and is 'ml-100k'"),
        ({"dataset": "synthetic"}, "data.name was 'ml-1m' and is 'synthetic'"),
    ],
)
def test_other_settings_are_named_and_refused(started, given, said):
    folder, _ = started
    with pytest.raises(UsageError, match="leave settings out") as refused:
        choose_folder(resumed_settings(folder, **given), folder, resume=True)
    assert said in str(refused.value)


def test_a_file_or_preset_is_taken_whole_and_data_that_moved_are_found_where_they_are_said_to_be(started, tmp_path):
    folder, config = started
    (tmp_path / "again.toml").write_text((folder / CONFIG).read_text())
    assert resumed_settings(folder, tmp_path / "again.toml") == config
    moved = resumed_settings(folder, data_path=tmp_path / "moved")
    assert moved.data.path == tmp_path / "moved" and moved.published() == config.published()


def test_a_run_that_was_not_started_has_the_settings_that_are_given(tmp_path):
    assert resumed_settings(tmp_path / "none", None, "open", seed=2) == load_config(None, "open", seed=2)
