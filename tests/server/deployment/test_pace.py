"""A round starts at its time and with its quorum, and its length tells nothing where cohorts are secret."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact
from fedrecall.protocol.records import Arrays, Update
from fedrecall.server.deployment.pace import Pace, note_end, read_progress

from .small_jobs import POISSON, ROUNDS, job_in


class World:
    """Answers at once, and keeps when it was asked; devices come over time."""

    def __init__(self, *counts: int) -> None:
        self.counts, self.asked = list(counts), []

    def connected(self) -> int:
        return self.counts.pop(0) if len(self.counts) > 1 else self.counts[0]

    def collect(self, round: int, arrays: Arrays, cohort: np.ndarray, clip: float | None) -> Iterator[Update]:
        self.asked.append(time.monotonic())
        yield Update(round=round, nonce="n", arrays={})


def pace_of(world: World, folder: Path, mechanism=ROUNDS, **settings: float) -> Pace:
    job = job_in(folder, mechanism, **settings)
    return Pace(collect=world.collect, job=job, connected=world.connected, refusals=Counter({"late": 3}))


def ask(pace: Pace) -> float:
    began = time.monotonic()
    assert [update.nonce for update in pace(0, {}, np.arange(4), 1.0)] == ["n"]
    return time.monotonic() - began


def test_a_round_takes_its_whole_deadline_only_where_its_cohort_is_secret(tmp_path: Path) -> None:
    assert ask(pace_of(World(4), tmp_path / "everyone", deadline_s=0.8)) < 0.5
    assert 0.8 <= ask(pace_of(World(4), tmp_path / "secret", POISSON, deadline_s=0.8)) < 1.3


def test_refusals_are_noted_only_where_cohorts_are_no_secret(tmp_path: Path) -> None:
    for name, mechanism, noted in (("everyone", ROUNDS, {"late": 3}), ("secret", POISSON, None)):
        ask(pace_of(World(4), tmp_path / name, mechanism, deadline_s=0.1))
        assert read_progress(tmp_path / name)["refused"] == noted


def test_no_round_starts_without_its_quorum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrecall.server.deployment.pace._LOOK_S", 0.05)
    world = World(0, 0, 1, 1, 2, 2, 3)
    ask(pace_of(world, tmp_path, quorum=3))
    assert len(world.counts) == 1 and len(world.asked) == 1


def test_rounds_keep_their_distance_across_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrecall.server.deployment.pace._LOOK_S", 0.05)
    world = World(4)
    ask(pace_of(world, tmp_path, every_s=1.0))
    ask(pace_of(world, tmp_path, every_s=1.0))
    first, second = world.asked
    assert 0.95 <= second - first < 1.6


def test_a_clock_that_was_set_back_costs_one_turn_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedrecall.server.deployment.pace._LOOK_S", 0.05)
    monkeypatch.setattr("fedrecall.server.deployment.pace.time.time", lambda: time.monotonic() + 1e6)
    ask(pace_of(World(4), tmp_path, every_s=0.4))
    monkeypatch.setattr("fedrecall.server.deployment.pace.time.time", lambda: time.monotonic())
    assert ask(pace_of(World(4), tmp_path, every_s=0.4)) < 1.0


def test_the_end_is_noted_with_its_cause(tmp_path: Path) -> None:
    note_end(tmp_path, BudgetExhausted("rounds has spent all"))
    found = read_progress(tmp_path)
    assert (found["state"], found["exit_code"], found["problem"]) == ("failed", 4, "rounds has spent all")
    note_end(tmp_path, None)
    assert read_progress(tmp_path)["state"] == "finished"
    (tmp_path / "progress.json").write_text("[1")
    with pytest.raises(CorruptArtefact):
        read_progress(tmp_path)
