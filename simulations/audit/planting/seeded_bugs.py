"""Our own mistakes, planted one at a time: what an audit that is worth anything must catch (docs/audit.md).

A bug is planted by wrapping a function of the wiring in this process, around the audit of a small world. Nothing in
the product knows of it.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from fedrecall.server.training import rounds, sampling
from fedrecall.simulations.audit.planting import plants
from fedrecall.simulations.audit.planting.subjects import subject
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.training import loop, simulated_noise, start
from fedrecall.simulations.training.world import World

Plant = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class SeededBug:
    """One planted mistake.

    Attributes:
        name: as docs/audit.md lists it.
        subject: the small world that it is planted in.
        caught_by: names of attempts of which at least one must say ``broken``.
        plant: plants it for a while.
        spoil: changes the world instead, where the mistake is in what was set up.
    """

    name: str
    subject: str
    caught_by: tuple[str, ...]
    plant: Plant = contextlib.nullcontext
    spoil: Callable[[World], World] = lambda world: world


def _around(place: Any, name: str, wrap: Callable[[Any], Any]) -> Plant:
    return lambda: wrapped(place, name, wrap)


_NOISE = ("noise: rounds", "noise: in the run")

BUGS: tuple[SeededBug, ...] = (
    SeededBug(
        name="no noise",
        subject="central",
        caught_by=(*_NOISE, "white box: rounds"),
        plant=_around(rounds, "gaussian_sum", plants.no_noise),
    ),
    SeededBug(
        name="noise divided by n twice",
        subject="central",
        caught_by=(*_NOISE, "white box: rounds"),
        plant=_around(rounds, "gaussian_sum", plants.divided_twice),
    ),
    SeededBug(
        name="clip after the sum", subject="central", caught_by=("sensitivity",), plant=plants.clip_after_the_sum
    ),
    SeededBug(
        name="the same noise every round",
        subject="central",
        caught_by=_NOISE,
        plant=_around(simulated_noise, "server_noise", plants.same_every_round),
    ),
    SeededBug(
        name="noise on touched rows only",
        subject="central",
        caught_by=_NOISE,
        plant=_around(rounds, "gaussian_sum", plants.touched_rows),
    ),
    SeededBug(
        name="one row without noise, beside signal",
        subject="central",
        caught_by=("noise: in the run",),
        plant=_around(rounds, "gaussian_sum", plants.touched_in_the_run),
    ),
    SeededBug(
        name="a noised share clipped again",
        subject="local",
        caught_by=("noise: updates", "noise: rounds"),
        plant=plants.share_clipped_again,
    ),
    SeededBug(
        name="an un-noised metric beside the update",
        subject="central",
        caught_by=("wire: names",),
        plant=plants.metric_beside,
    ),
    SeededBug(
        name="a fixed cohort sold as Poisson",
        subject="sampled",
        caught_by=("sampler",),
        plant=_around(sampling, "poisson", plants.fixed_cohort),
    ),
    SeededBug(name="shuffling sold as Poisson", subject="sampled", caught_by=("sampler",), plant=plants.shuffled),
    SeededBug(
        name="the user tower in the payload", subject="local", caught_by=("wire: names",), plant=plants.tower_in_payload
    ),
    SeededBug(
        name="a private number inside an array that may leave",
        subject="central",
        caught_by=("noise: rounds", "sensitivity"),
        plant=plants.constant_inside,
    ),
    SeededBug(
        name="2C accounted as C",
        subject="local",
        caught_by=("sensitivity", "claims: epsilon"),
        spoil=plants.single_shift,
    ),
    SeededBug(
        name="noise not sized for dropout (the minimum of survivors ignored)",
        subject="central",
        caught_by=("void rounds",),
        plant=_around(rounds, "one_round", plants.survivors_ignored),
    ),
    SeededBug(
        name="a noiseless tower under unit interaction",
        subject="local",
        caught_by=("stateless",),
        spoil=plants.with_tower,
    ),
    SeededBug(
        name="ledger charged after release",
        subject="central",
        caught_by=("ledger: before release",),
        plant=_around(rounds, "one_round", plants.charged_late),
    ),
    SeededBug(
        name="a private popularity used as public",
        subject="central",
        caught_by=("start: from releases",),
        plant=plants.popularity_as_public,
    ),
    SeededBug(
        name="popularity released without noise",
        subject="central",
        caught_by=("noise: popularity", "white box: popularity"),
        plant=_around(start, "release_popularity", plants.bare_popularity),
    ),
    SeededBug(
        name="popularity not scaled to its bound",
        subject="central",
        caught_by=("sensitivity: popularity",),
        plant=_around(start, "popularity_sum", plants.unscaled_popularity),
    ),
    SeededBug(
        name="second moments beyond their bound by a hundredth",
        subject="central",
        caught_by=("sensitivity: second_moments",),
        plant=_around(start, "second_moment_sum", plants.enlarged_moments),
    ),
    SeededBug(
        name="correlated noise drawn independently",
        subject="limited",
        caught_by=_NOISE,
        plant=_around(loop, "CorrelatedNoise", lambda _: plants.Independent),
    ),
)


def world_of(bug: SeededBug, seed: int) -> World:
    """Return the world that ``bug`` is planted in."""
    return bug.spoil(subject(bug.subject, seed))
