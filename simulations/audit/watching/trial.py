"""One audited world: the trainings that its checks share, each done once and when it is first asked for."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.client.events.store import EventStore
from fedrecall.models.recall import initial_arrays
from fedrecall.privacy.accounting.accounting import AdversaryEpsilon, account
from fedrecall.privacy.mechanisms.correlated import coefficients
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.server.training.rounds import ROUNDS, Environment, ServerState
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.canaries import Canaries, enrol, own_items, silent
from fedrecall.simulations.audit.watching.watch import Watched, environment_of, watch
from fedrecall.simulations.training.world import Progress, World, trained_names

FAMILY = 1e-3
"""Chance that an audit of a sound run raises any alarm: all its statistical checks together."""

DECISIONS = 64
"""Most statistical decisions of one audit; each gets its share of ``FAMILY`` (Bonferroni)."""

LEVEL = FAMILY / DECISIONS
CONFIDENCE = 1 - FAMILY

_FEW = 16


@dataclass(frozen=True, eq=False)
class Trial:
    """An audited world.

    Attributes:
        world: the devices, plan and configuration.
        folder: an empty one for its trainings.
        seed: of coins, directions and what is probed.
        canaries: how many devices are enrolled beside the others.
        progress: told how far it is.
    """

    world: World
    folder: Path
    seed: int = 0
    canaries: int = 64
    progress: Progress = lambda *_: None

    @property
    def plan(self) -> Plan:
        """The world's plan."""
        return self.world.plan

    @property
    def rounds(self) -> Mechanism:
        """The plan's training mechanism."""
        return self.plan.mechanism(ROUNDS)

    @cached_property
    def enrolled(self) -> tuple[World, Canaries]:
        """The world with canary devices."""
        weights = initial_arrays(self.world.shape, 0)
        trained = sum(weights[name].numel() for name in trained_names(self.world))
        # Few coordinates a canary are enough: its direction has norm 1 whatever their number.
        most = max(1, min(self.world.store.n_items // own_items(self.plan.unit), trained // 4))
        return enrol(self.world, min(self.canaries, most), self.seed)

    @cached_property
    def watched(self) -> Watched:
        """A normal training with canaries."""
        world, canaries = self.enrolled
        return watch(world, self.folder / "canaries", canaries, self.progress)

    @cached_property
    def noise(self) -> Watched:
        """A training of devices without events: it releases noise alone."""
        return watch(silent(self.world), self.folder / "noise", None, self.progress)

    @cached_property
    def each_device(self) -> Watched:
        """A training of few devices without events, simulated one by one: what each of them adds itself."""
        if self.world.config.engine == "device":
            return self.noise
        few = min(_FEW, self.world.store.n_users)
        config = self.world.config.model_copy(update={"engine": "device"})
        store = EventStore.from_columns(
            users=np.zeros(0), items=np.zeros(0), n_users=few, n_items=self.world.store.n_items
        )
        world = replace(self.world, config=config, store=store, plan=replace(self.plan, devices=few))
        return watch(silent(world), self.folder / "devices", None, self.progress)

    @cached_property
    def wired(self) -> tuple[ServerState, Environment]:
        """The state before the first round, and the environment of the round loop."""
        return environment_of(self.world, self.folder / "wired")

    def wired_with(self, world: World) -> Environment:
        """Return the environment of a neighbouring world, which needs no start."""
        start = world.config.start.model_copy(update={"enabled": False})
        bare = replace(world, config=world.config.model_copy(update={"start": start}))
        return environment_of(bare, Path(tempfile.mkdtemp(dir=self.folder)))[1]

    @cached_property
    def claims(self) -> dict[str, float | None]:
        """The epsilon that the plan claims against each adversary."""
        return {row.name: row.epsilon for row in accounted(self.plan)}

    @property
    def correlation(self) -> list[float]:
        """First coefficients of the noise of successive rounds; [1.0] where they are independent."""
        return [float(c) for c in coefficients(self.rounds.bands)]

    def attempt(self, name: str, began: float, **fields: Any) -> Attempt:
        """Return an attempt with the trial's unit and the time since ``began``."""
        return Attempt(name=name, unit=self.plan.unit, seconds=round(time.perf_counter() - began, 3), **fields)


@cache
def accounted(plan: Plan) -> tuple[AdversaryEpsilon, ...]:
    """Return ``account(plan)``, worked out once: it takes seconds with sampling."""
    return account(plan)


Check = Callable[[Trial], list[Attempt]]
