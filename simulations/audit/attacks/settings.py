"""Which defences an attack on updates meets: none, each one alone, and the plan; with and without an item table."""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Int64

from fedrecall.privacy.accounting.accounting import Adversary, account_adversary
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.server.training.sampling import Sampler
from fedrecall.simulations.audit.attacks.observed import (
    TABLE,
    View,
    cut_to_window,
    groups_of,
    observe,
    variants,
    what_if,
)
from fedrecall.simulations.audit.attacks.robust import ROBUST, Robust
from fedrecall.simulations.audit.attacks.scores import Claim
from fedrecall.simulations.training.world import World, cohort_of

_ROUNDS = 10
"""Rounds of a noised sum that an adversary averages over, at most: the plan's, where it has fewer."""

_SINGLE_ROUNDS = 5
"""The same for noised updates, each of which is computed by itself."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One defence on one world.

    Attributes:
        name: of the row.
        world: with histories cut to one window, so that every event is in every round: the worst case.
        size: contributions in what is seen; 0 for the whole cohort.
        clipped: whether the clip holds.
        noised: whether the plan's noise is added.
        adversary: who sees it.
        unit: of the world's plan.
        robust: what is taken of the updates instead of their sum, if anything.
    """

    name: str
    world: World
    size: int
    clipped: bool
    noised: bool
    adversary: Adversary
    unit: str
    robust: Robust | None = None

    @property
    def rounds(self) -> int:
        """Over how many rounds the adversary averages: one without noise, which it would not have to."""
        most = _ROUNDS if self.size == 0 else _SINGLE_ROUNDS
        return min(most, max(1, self.world.plan.mechanism(ROUNDS).steps)) if self.noised else 1


def settings_of(world: World) -> list[Setting]:
    """Return every setting of a run: its own arrays, the item table trained as a what-if, and noise on each device.

    The last one shows the plan's epsilon against the server too.
    """
    cut = replace(world, store=cut_to_window(world.store, world.shape.window))
    found = [setting for prefix, own in variants(cut).items() for setting in _of(prefix, own)]
    if world.plan.trust == "central" and _private(world.plan):
        local = what_if(cut, local=True)
        found.append(_setting(f"{TABLE}noise on each device", local, 1, True, True, "server"))
    return found


def _of(prefix: str, world: World) -> list[Setting]:
    found = [
        _setting(f"{prefix}raw update", world, 1, False, False, "server"),
        _setting(f"{prefix}norm bound", world, 1, True, False, "server"),
        _setting(f"{prefix}sum of 20", world, 20, True, False, "server"),
        _setting(f"{prefix}sum of 100", world, 100, True, False, "server"),
        *(replace(_setting(f"{prefix}{how} of 100", world, 100, False, False, "server"), robust=how) for how in ROBUST),
    ]
    if not _private(world.plan):
        return found
    if world.plan.trust == "local":
        return [*found, _setting(f"{prefix}plan: noised update", world, 1, True, True, "server")]
    return [*found, _setting(f"{prefix}plan: noised sum", world, 0, True, True, "released-model")]


def _setting(name: str, world: World, size: int, clipped: bool, noised: bool, adversary: Adversary) -> Setting:
    return Setting(
        name=name, world=world, size=size, clipped=clipped, noised=noised, adversary=adversary, unit=world.plan.unit
    )


def _private(plan: Plan) -> bool:
    return plan.mechanism(ROUNDS).noise_multiplier > 0


def members_of(setting: Setting, devices: Int64[np.ndarray, " devices"]) -> list[Int64[np.ndarray, " members"]]:
    """Return whose contributions are in each view: all that may take part, where it is of the whole cohort."""
    if not setting.size:
        return [np.arange(setting.world.store.n_users)]
    return groups_of(devices, setting.size)


def views_of(
    setting: Setting,
    world: World,
    arrays: Arrays,
    members: list[Int64[np.ndarray, " members"]],
    *,
    round: int,
    seed: int,
) -> list[View]:
    """Return what is seen in one round, with fresh noise that depends on ``seed``.

    Args:
        setting: the defence.
        world: its own, or that without the events whose coin fell tails.
        arrays: the released model.
        members: from ``members_of``.
        round: the round.
        seed: of noise and cohorts.
    """
    cohort = cohort_of(world)
    plan, mechanism = world.plan, world.plan.mechanism(ROUNDS)
    if not setting.size:
        sampler = Sampler.of(
            mechanism, plan.devices, lambda r: np.random.default_rng(derive_seed(seed, "audit cohort", r))
        )
        members = [sampler.draw(round)]
    return [
        observe(
            world,
            cohort,
            arrays,
            devices,
            round=round,
            clipped=setting.clipped,
            noise=SeededNoise(seed, "audit", setting.name, round, view) if setting.noised else None,
            robust=setting.robust,
        )
        for view, devices in enumerate(members)
    ]


def claim_of(setting: Setting) -> Claim:
    """Return what is claimed of one event more or less.

    Under unit ``interaction`` the plan's epsilon. Under unit ``user`` another event makes the device another one:
    one is taken away and one added, twice the epsilon at delta (1 + e^epsilon) by group privacy (Dwork and Roth 2014,
    theorem 2.2 and its remark). Without noise nothing is claimed.
    """
    plan = setting.world.plan
    epsilon = claimed(plan, setting.adversary) if setting.noised else None
    if epsilon is None:
        return Claim(epsilon=None, delta=plan.delta, relation="add_remove")
    if plan.unit == "interaction":
        return Claim(epsilon=epsilon, delta=plan.delta, relation="add_remove")
    delta = min(0.5, plan.delta * (1 + math.exp(min(epsilon, 50.0))))
    return Claim(epsilon=2 * epsilon, delta=delta, relation="replace_one")


@cache
def claimed(plan: Plan, adversary: Adversary) -> float | None:
    """Return the epsilon that ``plan`` claims against ``adversary``, worked out once: many attacks ask."""
    return account_adversary(plan, adversary).epsilon
