"""The round loop: the one loop of every engine. A collector answers; this file aggregates, charges and releases."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.privacy.mechanisms.adaptive_clip import next_clip, noise_adaptively
from fedrecall.privacy.mechanisms.mechanisms import gaussian_sum
from fedrecall.privacy.mechanisms.noise import NoiseSource, check_noise
from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.errors import UpdateError
from fedrecall.protocol.plan import ROUNDS as ROUNDS
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.server.config import ServerConfig
from fedrecall.server.training import optimiser
from fedrecall.server.training.aggregation import mean_of, sum_updates
from fedrecall.server.training.enforcement import check_sampler, check_trust
from fedrecall.server.training.optimiser import AverageState, OptState
from fedrecall.server.training.sampling import Sampler
from fedrecall.server.training.validation import schema_of, validate_cohort_sum


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerState:
    """The server after ``round`` rounds.

    Attributes:
        round: rounds done, void ones included.
        arrays: all shared arrays.
        trained: names of those that rounds train.
        clip_norm: the next round's L2 bound of a sample's contribution; ``None`` for no bound.
        optimiser: the global optimiser's state.
        average: averaged iterates, where the configuration asks for them.
    """

    round: int
    arrays: Arrays
    trained: tuple[str, ...]
    clip_norm: float | None
    optimiser: OptState
    average: AverageState | None

    def released(self) -> dict[str, np.ndarray]:
        """Return the model that is released: averaged iterates where there are any."""
        return {**self.arrays, **(self.average.arrays if self.average else {})}


@dataclass(frozen=True, kw_only=True, eq=False)
class Environment:
    """What a round needs from outside.

    Attributes:
        collect: asks a cohort for its contributions at the released arrays: (round, arrays, cohort, clip norm) in,
            updates or, in a simulation, their sum out.
        sampler: draws the cohorts.
        noise: the server's noise of a round; ``simulated`` exactly where the plan is.
        key: names a round's noise in the ledger, so that a replay is charged once.
        samples: samples of one device, each clipped by itself: its blocks under unit ``interaction``, else 1.
        clock: tells the time, with its zone, for a plan that renews.
        on_refused: told of each update that is refused and counts as nothing; ``None`` makes the first one an error.
    """

    collect: Callable[[int, Arrays, np.ndarray, float | None], CohortSum | Iterable[Update]]
    sampler: Sampler
    noise: Callable[[int], NoiseSource]
    key: Callable[[int], str]
    samples: int = 1
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    on_refused: Callable[[Update, UpdateError], None] | None = None


def start_state(config: ServerConfig, arrays: Arrays, trained: tuple[str, ...], clip_norm: float | None) -> ServerState:
    """Return the state before the first round; ``clip_norm`` is the plan's."""
    return ServerState(
        round=0,
        arrays=dict(arrays),
        trained=trained,
        clip_norm=clip_norm,
        optimiser=optimiser.init(config, {name: arrays[name] for name in trained}),
        average=None,
    )


def run_rounds(
    state: ServerState,
    plan: Plan,
    environment: Environment,
    *,
    config: ServerConfig,
    ledger: Ledger,
    on_round: Callable[[ServerState], None],
) -> ServerState:
    """Run the plan's rounds from ``state`` to the horizon; ``on_round`` sees every new state (checkpoint there).

    Raises:
        PlanError: sampler, noise or trust model are not what the plan was accounted with; nothing was collected.
        BudgetExhausted: the ledger allows no further round.
        UpdateError: a collector's sum that its devices could not have made.
    """
    mechanism = plan.mechanism(ROUNDS)
    check_trust(plan)
    check_sampler(environment.sampler, plan, mechanism)
    while state.round < mechanism.steps:
        state = one_round(state, plan, mechanism, environment, config=config, ledger=ledger)
        on_round(state)
    return state


def one_round(
    state: ServerState,
    plan: Plan,
    mechanism: Mechanism,
    environment: Environment,
    *,
    config: ServerConfig,
    ledger: Ledger,
) -> ServerState:
    """Collect, validate, sum, charge, noise, divide by the expected cohort, step.

    A round with fewer contributions than the plan's minimum is void: it is charged, and its sum is dropped. In earnest
    a round that was charged before a crash is left out: where a key draws its noise again, a second sum under the same
    noise would give the difference of the two away.

    Raises:
        BudgetExhausted: as ``run_rounds``.
        UpdateError: as ``run_rounds``, and for a sum that was not made here in earnest.
    """
    current = state.round
    if not plan.simulated and ledger.charged(mechanism.name, current):
        return replace(state, round=current + 1)
    noise = environment.noise(current)
    check_noise(noise, plan)
    cohort = environment.sampler.draw(current)
    collected = environment.collect(current, state.arrays, cohort, state.clip_norm)
    trained = {name: state.arrays[name] for name in state.trained}
    asked = {**trained, WITHIN_CLIP: np.zeros((), dtype=np.float32)} if mechanism.adaptive_clip else trained
    schema = schema_of(asked)
    bound = None if state.clip_norm is None or plan.trust == "local" else state.clip_norm * environment.samples
    if isinstance(collected, CohortSum):
        if not plan.simulated:
            raise UpdateError("a cohort's sum came in earnest, in which no clip can be checked: collect its updates")
        validate_cohort_sum(collected, schema, round=current, clip_norm=bound)
        total = collected
    else:
        total = sum_updates(collected, schema, round=current, clip_norm=bound, on_refused=environment.on_refused)
    if total.devices > len(cohort):
        raise UpdateError(f"{total.devices} devices answered, {len(cohort)} were asked: sum each device once")
    # Rule 8: charged and synced before anything is released.
    ledger.charge(mechanism.name, current, environment.key(current), environment.clock())
    sums, clip_norm = _noised(total.arrays, plan, mechanism, state.clip_norm, noise)
    if total.devices < mechanism.min_survivors:
        return replace(state, round=current + 1)
    # Rule 3: by the expected cohort, never by the actual one.
    mean = mean_of({name: sums[name] for name in trained}, mechanism.sample_rate * plan.devices)
    stepped, opt = optimiser.step(config, state.optimiser, trained, mean, rounds=mechanism.steps)
    averaged = optimiser.average(config, state.average, stepped, step=current + 1, rounds=mechanism.steps)
    return replace(
        state,
        round=current + 1,
        arrays={**state.arrays, **stepped},
        clip_norm=clip_norm,
        optimiser=opt,
        average=averaged,
    )


def _noised(
    sums: Arrays, plan: Plan, mechanism: Mechanism, clip_norm: float | None, noise: NoiseSource
) -> tuple[Mapping[str, np.ndarray], float | None]:
    """Return the sums with the server's noise where the plan puts it there, and the next round's clip."""
    if mechanism.adaptive_clip is not None and mechanism.clip_norm is not None and clip_norm is not None:
        noised = noise_adaptively(sums, mechanism, clip_norm, noise)
        count, expected = float(noised[WITHIN_CLIP]), mechanism.sample_rate * plan.devices
        return noised, next_clip(clip_norm, mechanism.clip_norm, count, expected, mechanism.adaptive_clip)
    return (gaussian_sum(sums, mechanism, noise) if plan.trust == "central" else sums), clip_norm
