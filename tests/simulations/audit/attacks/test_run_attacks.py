import json
import time

import numpy as np
import pytest

from fedrecall.simulations.audit.attacks.steps import SHARES, attack_steps, in_time


def attacked(world, arrays, seconds, progress=lambda *_: None):
    """Return every attempt of all kinds."""
    return [row for step in attack_steps(world, arrays, 0, seconds, progress).values() for row in step()]


def test_a_private_run_is_attacked_from_all_sides_and_holds(world_of, arrays):
    world = world_of("rounds.train=['transformer.recency.']", "rounds.count=2", devices=120)
    told = []
    rows = attacked(world, arrays, 2.5, lambda name, done, total: told.append((name, done, total)))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    kinds = {name.split(":")[0] for name in names}
    assert kinds == {
        "interaction membership",
        "history reconstruction",
        "attribute inference",
        "history length",
        "device membership",
        "promotion",
    }
    assert not [row.name for row in rows if row.verdict == "broken"]
    # How far it comes in the time is the machine's affair.
    assert {row.verdict for row in rows} <= {"held", "shows", "not tested"}
    assert all(row.what and row.power for row in rows)
    json.dumps([row.to_dict() for row in rows], allow_nan=False)
    assert all(0 <= done <= total for _, done, total in told)


def test_without_time_every_row_says_so_but_what_had_begun(world_of, arrays):
    rows = attacked(world_of(devices=60), arrays, 0.0)
    made = {row.name for row in rows if row.verdict != "not tested"}
    assert made <= {"attribute inference: segment, query vector, if one left"}
    assert len(rows) > 20


def test_what_one_kind_leaves_over_the_next_may_use_and_what_it_takes_more_is_missing():
    told: dict[str, float] = {}

    def kind(name: str, takes: float):
        def attack(left):
            told[name] = left()
            time.sleep(takes)
            yield from ()

        return attack

    takes = dict(zip(SHARES, (0.0, 0.4, 0.0, 0.0, 0.0, 0.0), strict=True))
    for step in in_time({name: kind(name, seconds) for name, seconds in takes.items()}, 1.0).values():
        step()
    assert sum(SHARES.values()) == pytest.approx(1)
    expected = np.cumsum(list(SHARES.values())) - [0, 0, 0.4, 0.4, 0.4, 0.4]
    assert list(told.values()) == pytest.approx(expected.tolist(), abs=0.2)
    assert told["lists and times"] < told["attributes"]
