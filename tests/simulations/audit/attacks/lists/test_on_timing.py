"""Times and sizes of answers: a device that works longer for a long history is told apart, one that waits is not."""

import time
from dataclasses import replace

import numpy as np
import pytest

from fedrecall.client.training.trainer import Trainer
from fedrecall.simulations.audit.attacks.lists import on_timing
from fedrecall.simulations.audit.attacks.lists.on_timing import attack_timing, shortest_and_longest
from fedrecall.simulations.audit.watching.wrapping import wrapped

ANSWER, WAITED, SIZE = (
    f"history length: {what}"
    for what in ("time of an answer", "time of an answer, sent after a fixed wait", "size of an update")
)


def attempts(world, arrays, devices=10):
    return {row.name: row for row in attack_timing(world, arrays, devices=devices, seed=0)}


def slower_by_length(update):
    def waiting(self, round, arrays, device, *rest, **more):
        time.sleep(4e-3 * len(device.store.items))
        return update(self, round, arrays, device, *rest, **more)

    return waiting


def test_a_device_that_works_longer_for_a_long_history_is_told_apart(world, arrays):
    """Planted: 4 ms an event, well above what other work on the machine adds, between histories of 15 and 40."""
    with wrapped(Trainer, "update", slower_by_length):
        found = attempts(world, arrays)
    assert found[ANSWER].score > 0.9
    assert found[ANSWER].detail["median_ms_long"] > found[ANSWER].detail["median_ms_short"] + 5
    assert found[WAITED].detail["wait_ms"] > found[WAITED].detail["median_ms_long"]


def test_a_fixed_wait_hides_what_is_faster_than_it(world, arrays):
    """Times planted: devices take 1 ms an event, to a tenth; the slowest is within the wait, and none is seen."""

    def planted(_):
        def answers(world, arrays, devices, rng, seed):
            times = 1e-3 * world.store.counts()[devices][:, None] * rng.uniform(0.9, 1.1, (len(devices), 5))
            return times, np.full((len(devices), 5), 100)

        return answers

    with wrapped(on_timing, "answers", planted):
        found = attempts(world, arrays, devices=200)
    assert found[ANSWER].score > 0.95
    assert (found[WAITED].score, found[WAITED].low, found[WAITED].high) == (0.5, 0.5, 0.5)
    slowest = 1.1 * np.sort(world.store.counts())[-100:].max()
    assert 1.5 * slowest < found[WAITED].detail["wait_ms"] <= 2 * slowest


@pytest.mark.parametrize("preset", ["user-eps8", "interaction-eps8"])
def test_updates_are_of_one_size(world_of, arrays, preset):
    found = attempts(world_of(preset=preset, devices=200), arrays)
    assert (found[SIZE].verdict, found[SIZE].score, found[SIZE].trials) == ("held", 0.0, 10 * 5)
    assert {found[name].verdict for name in (ANSWER, WAITED)} == {"shows"}


def test_one_device_that_sends_a_byte_more_breaks_the_claim(world, arrays):
    asked = []

    def longer(pack):
        def packed(arrays, header):
            asked.append(header)
            return pack(arrays, header) + b"\0" * (len(asked) == 30)

        return packed

    with wrapped(on_timing, "pack", longer):
        found = attempts(world, arrays)
    assert (found[SIZE].verdict, found[SIZE].score) == ("broken", 1.0)


def test_both_ends_are_compared_and_equal_histories_are_not():
    chosen, longer = shortest_and_longest(np.array([1, 9, 3, 5, 2, 7, 0]), 4)
    assert chosen[~longer].tolist() == [4, 2] and chosen[longer].tolist() == [5, 1]
    chosen, longer = shortest_and_longest(np.array([4, 4, 4, 4, 9, 9]), 6)
    assert chosen[~longer].tolist() == [0, 1, 2] and chosen[longer].tolist() == [4, 5]
    assert not shortest_and_longest(np.full(8, 5), 8)[1].any()


def test_histories_of_one_length_are_not_tested(world_of, arrays):
    world = world_of(devices=40)
    same = world.store.select(np.concatenate([np.arange(5) + at for at in world.store.offsets[:-1]]))
    (only,) = attack_timing(replace(world, store=same), arrays, devices=24, seed=0)
    assert only.verdict == "not tested"
