"""One audited world: the trainings that its checks share, each done once and when it is first asked for."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.client.events.store import EventStore
from fedrecall.client.training.start import second_moment_sum
from fedrecall.models.recall import initial_arrays
from fedrecall.privacy.accounting.accounting import AdversaryEpsilon, account
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.randomness import derive_seed
from fedrecall.server.training.rounds import ROUNDS, Environment, ServerState
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.canaries import Canaries, enrol, own_items, silent
from fedrecall.simulations.audit.watching.histories import Probes, probes
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
        most_rounds: of a training, of the plan's: which ones is drawn at random; ``None`` for all of them, else at
            least 4.
        kept: what several checks need, by name, once one of them made it.
    """

    world: World
    folder: Path
    seed: int = 0
    canaries: int = 64
    progress: Progress = lambda *_: None
    most_rounds: int | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """The world's plan."""
        return self.world.plan

    @property
    def rounds(self) -> Mechanism:
        """The plan's training mechanism."""
        return self.plan.mechanism(ROUNDS)

    @cached_property
    def visited(self) -> tuple[int, ...]:
        """The rounds that trainings make: all, or the first two, the last, and others at random."""
        return self.some_rounds(self.most_rounds)

    def some_rounds(self, most: int | None) -> tuple[int, ...]:
        """Return at most so many rounds of the plan, in order; of many: the first two, the last, others at random."""
        steps = self.rounds.steps
        if most is None or steps <= most:
            return tuple(range(steps))
        rng = np.random.default_rng(derive_seed(self.seed, "rounds of the audit", most))
        others = 2 + rng.choice(steps - 3, size=most - 3, replace=False)
        return tuple(sorted({0, 1, steps - 1, *others.tolist()}))

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
        return watch(world, self.folder / "canaries", canaries, self.progress, visit=self.visited)

    @cached_property
    def noise(self) -> Watched:
        """A training of devices without events: it releases noise alone."""
        return watch(silent(self.world), self.folder / "noise", None, self.progress, visit=self.visited)

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
        return watch(silent(world), self.folder / "devices", None, self.progress, visit=self.visited)

    @cached_property
    def wired(self) -> tuple[ServerState, Environment]:
        """The state before the first round, and the environment of the round loop."""
        return environment_of(self.world, self.folder / "wired")

    @cached_property
    def probed(self) -> Probes:
        """The devices that checks of sensitivity ask, beside the run's own."""
        return probes(self.world.store, window=self.world.shape.window, rng=np.random.default_rng(self.seed))

    @property
    def probed_world(self) -> World:
        """The world with made-up devices too; the plan is the same."""
        return replace(self.world, store=self.probed.store)

    def wired_with(self, world: World) -> Environment:
        """Return the environment of a neighbouring world, which needs no start."""
        start = world.config.start.model_copy(update={"enabled": False})
        bare = replace(world, config=world.config.model_copy(update={"start": start}))
        return environment_of(bare, Path(tempfile.mkdtemp(dir=self.folder)))[1]

    @cached_property
    def others_moments(self) -> np.ndarray:
        """The second moments of all devices but the canaries, compared as the training with canaries compared them."""
        return second_moment_sum(self.world.store, self.watched.start["comparison"]).arrays["second_moments"]

    def rounds_std(self, clip_norm: float | None) -> float:
        """Return the standard deviation of the noise that a round adds where it is added, at this clip."""
        return self.rounds.sum_noise_multiplier * (clip_norm or 0.0)

    @cached_property
    def claims(self) -> dict[str, float | None]:
        """The epsilon that the plan claims against each adversary."""
        return {row.name: row.epsilon for row in accounted(self.plan)}

    def attempt(self, name: str, began: float, **fields: Any) -> Attempt:
        """Return an attempt with the trial's unit and the time since ``began``."""
        return Attempt(name=name, unit=self.plan.unit, seconds=round(time.perf_counter() - began, 3), **fields)


@cache
def accounted(plan: Plan) -> tuple[AdversaryEpsilon, ...]:
    """Return ``account(plan)``, worked out once: it takes seconds with sampling."""
    return account(plan)


Check = Callable[[Trial], list[Attempt]]
