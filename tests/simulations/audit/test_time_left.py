"""What an audit says that it has left."""

import time

import pytest

from fedrecall.simulations.audit.time_left import TimeLeft

Told = list[tuple[str, int, int]]


def test_the_time_left_is_that_of_the_steps_that_are_not_over() -> None:
    told: Told = []
    left = TimeLeft(lambda *said: told.append(said), {"train": 100.0, "attack": 3600.0})
    left.begin("quick")
    left("rounds", 0, 9)
    assert left.seconds() == 3700.0
    left.begin("train")
    time.sleep(0.05)
    assert 3600.0 < left.seconds() < 3699.96
    left.begin("attack")
    left("rounds", 3, 9)
    left("rounds", 4, 9)
    assert left.seconds() == pytest.approx(3600, abs=1)
    left.begin("last")
    left("report", 1, 1)
    assert told == [
        ("rounds (audit: about 1 h 1 min left)", 0, 9),
        ("rounds (audit: about 1 h 0 min left)", 3, 9),
        ("rounds (audit: about 1 h 0 min left)", 4, 9),
        ("report (audit: about 0.0 s left)", 1, 1),
    ]


def test_a_step_that_takes_longer_than_expected_is_over_at_any_moment() -> None:
    left = TimeLeft(lambda *_: None, {"train": 0.01, "attack": 5.0})
    left.begin("train")
    time.sleep(0.03)
    assert left.seconds() == 5.0
