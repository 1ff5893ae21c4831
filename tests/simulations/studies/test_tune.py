import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.protocol.errors import ConfigError, UsageError
from fedrecall.simulations.config import load_config
from fedrecall.simulations.studies import tune as tuning
from fedrecall.simulations.studies.tune import BEST, PICTURE, Range, parse_range, tune
from fedrecall.simulations.training.simulated_noise import server_noise
from tests.simulations.runs.small_runs import small_config

RANGES = (
    Range(key="start.popularity", low=0.01, high=3.0, log=True),
    Range(key="rounds.count", low=1, high=3, whole=True),
)


def search(out: Path, trials: int, *, resume: bool = False, noise: float = 0.0, ranges=RANGES, metric="recall@50"):
    config = small_config("rounds.count=2")
    return tune(
        config,
        out=out,
        ranges=ranges,
        trials=trials,
        metric=metric,
        count_noise=noise,
        resume=resume,
        progress=lambda *_: None,
    )


def test_a_search_keeps_the_best_and_starts_from_the_preset(tmp_path: Path) -> None:
    found = search(tmp_path / "a", 4)
    assert [row["trial"] for row in found["trials"]] == [0, 1, 2, 3]
    assert found["preset"]["settings"] == {} and found["trials"][0] == found["preset"]
    assert found["best"]["value"] == max(row["value"] for row in found["trials"])
    for row in found["trials"][1:]:
        assert set(row["settings"]) == {r.key for r in RANGES}
        assert 0.01 <= row["settings"]["start.popularity"] <= 3.0 and row["settings"]["rounds.count"] in (1, 2, 3)
    assert json.loads((tmp_path / "a" / "tune.json").read_text()) == found
    assert "<svg" in (tmp_path / "a" / PICTURE).read_text()
    best = load_config(tmp_path / "a" / BEST)
    for key, value in found["best"]["settings"].items():
        section, name = key.split(".")
        assert getattr(getattr(best, section), name) == pytest.approx(value)
    assert tomllib.loads((tmp_path / "a" / BEST).read_text())["data"]["name"] == "synthetic"


def test_a_killed_search_ends_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = search(tmp_path / "whole", 4)
    real, calls = tuning._trial, iter(range(9))

    def killed(*args, **kwargs):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(tuning, "_trial", killed)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", 4)
    monkeypatch.setattr(tuning, "_trial", real)
    with pytest.raises(UsageError, match="--resume"):
        search(tmp_path / "cut", 4)
    assert search(tmp_path / "cut", 4, resume=True) == whole
    with pytest.raises(UsageError, match="another question"):
        search(tmp_path / "cut", 4, resume=True, metric="recall@10")


def test_a_noised_search_states_the_epsilon_of_all_of_it(tmp_path: Path) -> None:
    """Three trials of epsilon 8 and three sums with noise 5: mu^2 adds up, each by hand."""
    exact, noised = search(tmp_path / "exact", 3), search(tmp_path / "noised", 3, noise=5.0)
    assert exact["privacy"]["epsilon"] is None and not exact["privacy"]["charged"]
    assert "outside epsilon" in exact["privacy"]["reason"]
    assert exact["trials"][0]["value"] != noised["trials"][0]["value"]
    from fedrecall.privacy.accounting.gaussian import gaussian_mu

    mu = (3 * gaussian_mu(8.0, 1e-5) ** 2 + 3 / 5.0**2) ** 0.5
    assert noised["privacy"]["charged"]
    assert noised["privacy"]["epsilon"] == pytest.approx(gaussian_epsilon(mu, 1e-5), rel=2e-3)
    with pytest.raises(UsageError, match="central"):
        tune(
            small_config(preset="interaction-eps8"),
            out=tmp_path / "no",
            ranges=(),
            trials=1,
            metric="recall@50",
            count_noise=1.0,
            resume=False,
            progress=lambda *_: None,
        )


def test_ranges_are_read_and_refused(tmp_path: Path) -> None:
    assert parse_range("start.scale=4:20:log") == Range(key="start.scale", low=4, high=20, log=True)
    assert parse_range("rounds.count=1:9").whole and not parse_range("start.cut=0.1:1").whole
    for bad in ("start.scale", "start.scale=4", "=1:2", "a=2:1", "a=0:1:log", "a=1:2:lin", "a=1:nan", "a=1:2:log:x"):
        with pytest.raises(UsageError):
            parse_range(bad)
    with pytest.raises(ConfigError, match="popularity"):
        search(tmp_path / "x", 1, ranges=(Range(key="start.populrity", low=0.1, high=1.0),))
    with pytest.raises(ConfigError, match=r"start\.decay"):
        search(tmp_path / "x", 1, ranges=(Range(key="start.decay", low=-1.0, high=1.0),))
    with pytest.raises(UsageError, match="metric"):
        search(tmp_path / "x", 1, metric="coverage@10")
    assert not (tmp_path / "x").exists()
    assert dataclasses.asdict(RANGES[0])["log"]


def test_trials_of_one_plan_draw_noise_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared noise would cancel between two trials: their composition could then not be what is stated."""
    seen, real = [], tuning.train

    def train(world, *args, **kwargs):
        draws = [server_noise(world, name, 0).normal((4,), 1.0).tolist() for name in ("popularity", "second_moments")]
        seen.append((world.plan.digest(), str(draws)))
        return real(world, *args, **kwargs)

    monkeypatch.setattr(tuning, "train", train)
    search(tmp_path, 3, ranges=(RANGES[0],))
    assert len({plan for plan, _ in seen}) == 1 and len({draws for _, draws in seen}) == 3
