"""Seeded bugs that some histories have, or some rounds: a bound that does not hold for them. None of it is sound."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from fedrecall.client.events.store import EventStore
from fedrecall.client.training import trainer
from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.records import CohortSum
from fedrecall.simulations.audit.watching.wrapping import wrapped

_LONG = 40
_WIDER = 1.5

Collect = Callable[..., CohortSum]


def _plus(one: CohortSum, other: CohortSum) -> CohortSum:
    """Return the sum of two sums, as though of the devices of the first."""
    return replace(one, arrays={name: array + other.arrays[name] for name, array in one.arrays.items()})


def most_active_twice(collect: Collect) -> Collect:
    """Count the most active device of those that are asked twice, from round 1 on."""

    def summed(self: Any, round: int, arrays: Any, users: np.ndarray, *rest: Any, **more: Any) -> CohortSum:
        once = collect(self, round, arrays, users, *rest, **more)
        if not round or not len(users):
            return once
        most = users[[int(np.argmax(self.store.counts()[users]))]]
        return _plus(once, collect(self, round, arrays, most, *rest, **more))

    return summed


def long_histories_wider(collect: Collect) -> Collect:
    """Clip devices of more than 40 events at half as much again."""

    def summed(self: Any, round: int, arrays: Any, users: np.ndarray, *rest: Any, **more: Any) -> CohortSum:
        long = self.store.counts()[users] > _LONG
        if more.get("clip_norm") is None or not long.any():
            return collect(self, round, arrays, users, *rest, **more)
        wider = more | {"clip_norm": _WIDER * more["clip_norm"]}
        short = collect(self, round, arrays, users[~long], *rest, **more)
        return replace(_plus(short, collect(self, round, arrays, users[long], *rest, **wider)), devices=len(users))

    return summed


def middling_histories_wider(collect: Collect) -> Collect:
    """Clip devices of 33 to 79 events at half as much again, in round 2 alone."""

    def summed(self: Any, round: int, arrays: Any, users: np.ndarray, *rest: Any, **more: Any) -> CohortSum:
        counts = self.store.counts()[users]
        some = (counts > 32) & (counts < 80)
        if round != 2 or more.get("clip_norm") is None or not some.any():
            return collect(self, round, arrays, users, *rest, **more)
        wider = more | {"clip_norm": _WIDER * more["clip_norm"]}
        others = collect(self, round, arrays, users[~some], *rest, **more)
        return replace(_plus(others, collect(self, round, arrays, users[some], *rest, **wider)), devices=len(users))

    return summed


def last_round_wider(collect: Collect) -> Collect:
    """Clip at half as much again in round 4."""

    def summed(self: Any, round: int, *rest: Any, **more: Any) -> CohortSum:
        if round == 4 and more.get("clip_norm") is not None:
            more["clip_norm"] *= _WIDER
        return collect(self, round, *rest, **more)

    return summed


def whole_count(collect: Collect) -> Collect:
    """Let a device add one to the count within the clip, or take one away, and not a half."""

    def summed(*rest: Any, **more: Any) -> CohortSum:
        found = collect(*rest, **more)
        if WITHIN_CLIP not in found.arrays:
            return found
        return replace(found, arrays={**found.arrays, WITHIN_CLIP: 2 * found.arrays[WITHIN_CLIP]})

    return summed


@contextmanager
def long_histories_wider_on_devices() -> Iterator[None]:
    """Let a device of more than 40 events clip its blocks at half as much again, under the noise of the plan."""

    def wrap(update: Any) -> Any:
        def made(self: trainer.Trainer, round: int, arrays: Any, device: Any, *rest: Any, **more: Any) -> Any:
            sound = self._mechanism
            if device.store.n_events > _LONG and sound.clip_norm is not None:
                wider, noise = _WIDER * sound.clip_norm, sound.noise_multiplier / _WIDER
                self._mechanism = replace(sound, clip_norm=wider, noise_multiplier=noise)
            try:
                return update(self, round, arrays, device, *rest, **more)
            finally:
                self._mechanism = sound

        return made

    with wrapped(trainer.Trainer, "update", wrap):
        yield


def _only(store: EventStore, events: int) -> EventStore:
    """Return the store without the devices of so many events or fewer."""
    return store.select((store.counts() > events)[store.users()])


def long_moments_larger(make: Any) -> Any:
    """Make comparisons of devices with more than 101 events larger than their bound by a hundredth."""

    def summed(store: EventStore, comparison: Any) -> CohortSum:
        whole: CohortSum = make(store, comparison)
        long = make(_only(store, 101), comparison)
        return replace(whole, arrays={name: array + 0.01 * long.arrays[name] for name, array in whole.arrays.items()})

    return summed


def long_popularity_twice(make: Any) -> Any:
    """Count devices twice that have more events than the catalogue has items."""

    def summed(store: EventStore, unit: Any) -> CohortSum:
        return _plus(make(store, unit), make(_only(store, store.n_items), unit))

    return summed
