"""Our own mistakes, planted one at a time: what an audit that is worth anything must catch (docs/audit.md).

A bug is planted by wrapping a function of the wiring in this process, around the audit of a small world. Nothing in
the product knows of it.
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from fedrecall.client.training import cohort, trainer
from fedrecall.privacy.mechanisms.noise import SecureNoise
from fedrecall.server.training import rounds, sampling
from fedrecall.simulations.audit.planting import history_plants, noise_plants, plants, release_plants
from fedrecall.simulations.audit.planting.subjects import subject
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.runs import run
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
_TOGETHER = ("noise: all together", "noise: at length")
_ASKED = ("sensitivity", "sensitivity: released")

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
    SeededBug(
        name="half of a round's noise copies the other half",
        subject="central",
        caught_by=_TOGETHER,
        plant=_around(rounds, "gaussian_sum", noise_plants.edited(noise_plants.halves)),
    ),
    SeededBug(
        name="one noise for two mechanisms",
        subject="central",
        caught_by=_TOGETHER,
        plant=_around(simulated_noise, "server_noise", noise_plants.one_for_all),
    ),
    SeededBug(
        name="a later round uses an earlier mechanism's noise again",
        subject="central",
        caught_by=_TOGETHER,
        plant=_around(simulated_noise, "server_noise", noise_plants.again_later),
    ),
    SeededBug(
        name="a round's noise is an earlier one's, with another sign and in another order",
        subject="central",
        caught_by=_TOGETHER,
        plant=_around(simulated_noise, "server_noise", noise_plants.turned_later),
    ),
    SeededBug(
        name="devices share their noise",
        subject="local",
        caught_by=("noise: updates", "noise: all together"),
        plant=_around(loop, "SeededNoise", noise_plants.shared_by_devices),
    ),
    SeededBug(
        name="noise cut at 3.5 deviations",
        subject="sampled",
        caught_by=("noise: at length",),
        plant=_around(rounds, "gaussian_sum", noise_plants.edited(noise_plants.cut)),
    ),
    SeededBug(
        name="noise beyond four deviations drawn again",
        subject="local",
        caught_by=("noise: at length",),
        plant=_around(trainer, "gaussian_sum", noise_plants.edited(noise_plants.drawn_again)),
    ),
    SeededBug(
        name="noise whose sum is nothing",
        subject="central",
        caught_by=("noise: at length",),
        plant=_around(rounds, "gaussian_sum", noise_plants.edited(noise_plants.centred)),
    ),
    SeededBug(
        name="noise in pairs of 256 directions",
        subject="central",
        caught_by=("noise: at length",),
        plant=_around(rounds, "gaussian_sum", noise_plants.edited(noise_plants.one_direction)),
    ),
    SeededBug(
        name="a deployment's noise cut at three deviations",
        subject="central",
        caught_by=("noise: of deployments",),
        plant=_around(SecureNoise, "added", noise_plants.deployed_cut),
    ),
    SeededBug(
        name="no noise from a later round on",
        subject="central",
        caught_by=_NOISE,
        plant=_around(rounds, "one_round", noise_plants.ends),
    ),
    SeededBug(
        name="signal without noise added after the optimiser",
        subject="central",
        caught_by=("released: rounds", "sensitivity: released"),
        plant=_around(rounds, "one_round", release_plants.after_optimiser),
    ),
    SeededBug(
        name="signal without noise added to the average, from a later round on",
        subject="adaptive",
        caught_by=("released: rounds", "sensitivity: released"),
        plant=_around(rounds, "one_round", release_plants.in_the_average),
    ),
    SeededBug(
        name="signs of the exact sum in the last bits of the weights",
        subject="central",
        caught_by=("released: rounds",),
        plant=_around(rounds, "one_round", release_plants.last_bits),
    ),
    SeededBug(
        name="signal without noise beside the noised sum",
        subject="central",
        caught_by=("sensitivity: released",),
        plant=_around(rounds, "gaussian_sum", release_plants.beside_the_noise),
    ),
    SeededBug(
        name="a checkpoint that holds other weights than were released",
        subject="central",
        caught_by=("released: rounds",),
        plant=_around(loop, "save_checkpoint", release_plants.moved_checkpoint),
    ),
    SeededBug(
        name="files that hold other weights than the last round",
        subject="central",
        caught_by=("released: files",),
        plant=_around(run, "write_release", release_plants.moved_model),
    ),
    SeededBug(
        name="an item table that is off the last round's vectors",
        subject="central",
        caught_by=("released: files",),
        plant=_around(run, "item_vectors", release_plants.moved_items),
    ),
    SeededBug(
        name="item vectors made of the exact popularity",
        subject="central",
        caught_by=("start: from releases",),
        plant=release_plants.exact_popularity_in_vectors,
    ),
    SeededBug(
        name="the most active device counted twice from round 1 on",
        subject="central",
        caught_by=_ASKED,
        plant=_around(cohort.Cohort, "collect", history_plants.most_active_twice),
    ),
    SeededBug(
        name="a wider clip for long histories",
        subject="central",
        caught_by=_ASKED,
        plant=_around(cohort.Cohort, "collect", history_plants.long_histories_wider),
    ),
    SeededBug(
        name="a wider clip for long histories, on devices",
        subject="local",
        caught_by=_ASKED,
        plant=history_plants.long_histories_wider_on_devices,
    ),
    SeededBug(
        name="a wider clip for histories of 33 to 79 events, in one round",
        subject="central",
        caught_by=_ASKED,
        plant=_around(cohort.Cohort, "collect", history_plants.middling_histories_wider),
    ),
    SeededBug(
        name="a wider clip in a later round",
        subject="central",
        caught_by=_ASKED,
        plant=_around(cohort.Cohort, "collect", history_plants.last_round_wider),
    ),
    SeededBug(
        name="second moments beyond their bound, of more than 101 events",
        subject="central",
        caught_by=("sensitivity: second_moments",),
        plant=_around(start, "second_moment_sum", history_plants.long_moments_larger),
    ),
    SeededBug(
        name="popularity counted twice, of more events than the catalogue has items",
        subject="central",
        caught_by=("sensitivity: popularity",),
        plant=_around(start, "popularity_sum", history_plants.long_popularity_twice),
    ),
    SeededBug(
        name="a clip that follows the exact count",
        subject="adaptive",
        caught_by=("adaptive clip", "noise: at length"),
        plant=release_plants.clip_by_exact_count,
    ),
    SeededBug(
        name="a count whose noise is the sum's",
        subject="adaptive",
        caught_by=("noise: at length",),
        plant=_around(rounds, "noise_adaptively", noise_plants.count_from_sum),
    ),
    SeededBug(
        name="a count to which a device adds more than a half",
        subject="adaptive",
        caught_by=("sensitivity: count",),
        plant=_around(cohort.Cohort, "collect", history_plants.whole_count),
    ),
    SeededBug(
        name="noise sized by the first clip",
        subject="adaptive",
        caught_by=_NOISE,
        plant=_around(rounds, "noise_adaptively", noise_plants.sized_by_first_clip),
    ),
)


def world_of(bug: SeededBug, seed: int) -> World:
    """Return the world that ``bug`` is planted in."""
    return bug.spoil(subject(bug.subject, seed))
