"""The round loop: the one loop of every engine. A collector answers; this file aggregates, charges and releases."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedrecall.privacy.ledger import Ledger
from fedrecall.privacy.mechanisms import gaussian_sum
from fedrecall.privacy.noise import NoiseSource
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.server import optimiser
from fedrecall.server.aggregation import mean_of, sum_updates
from fedrecall.server.config import ServerConfig
from fedrecall.server.optimiser import AverageState, OptState
from fedrecall.server.sampling import draw_cohort
from fedrecall.server.validation import schema_of, validate_cohort_sum

ROUNDS = "rounds"
"""Name of the plan's training mechanism."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ServerState:
    """The server after ``round`` rounds: all shared arrays, and the names of those that rounds train."""

    round: int
    arrays: Arrays
    trained: tuple[str, ...]
    optimiser: OptState
    average: AverageState | None

    def released(self) -> dict[str, np.ndarray]:
        """Return the model that is released: averaged iterates where there are any."""
        return {**self.arrays, **(self.average.arrays if self.average else {})}


@dataclass(frozen=True, kw_only=True, eq=False)
class Environment:
    """What a round needs from outside.

    Attributes:
        collect: asks a cohort for its contributions at the released arrays: (round, arrays, cohort) in, updates
            or, in a simulation, their sum out.
        coins: the generator of a round's cohort; secret where the plan claims amplification.
        noise: the server's noise of a round.
        key: names a round's noise in the ledger, so that a replay is charged once.
        sample_clip: L2 bound of what one device may contribute in all; ``None`` where it adds its own noise.
    """

    collect: Callable[[int, Arrays, np.ndarray], CohortSum | Iterable[Update]]
    coins: Callable[[int], np.random.Generator]
    noise: Callable[[int], NoiseSource]
    key: Callable[[int], str]
    sample_clip: float | None


def start_state(config: ServerConfig, arrays: Arrays, trained: tuple[str, ...]) -> ServerState:
    """Return the state before the first round."""
    return ServerState(
        round=0,
        arrays=dict(arrays),
        trained=trained,
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
        BudgetExhausted: the ledger allows no further round.
        UpdateError: a collector's sum that its devices could not have made.
    """
    mechanism = plan.mechanism(ROUNDS)
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
    """Collect, validate, sum, charge, noise, divide by the expected cohort, step."""
    current = state.round
    cohort = draw_cohort(mechanism, plan.devices, environment.coins(current))
    collected = environment.collect(current, state.arrays, cohort)
    trained = {name: state.arrays[name] for name in state.trained}
    schema = schema_of(trained)
    if isinstance(collected, CohortSum):
        validate_cohort_sum(collected, schema, round=current, clip_norm=environment.sample_clip)
        total = collected
    else:
        total = sum_updates(collected, schema, round=current, clip_norm=environment.sample_clip)
    # Rule 8: charged and synced before anything is released.
    ledger.charge(mechanism.name, current, environment.key(current))
    sums: Mapping[str, np.ndarray] = total.arrays
    if plan.trust == "central":
        sums = gaussian_sum(sums, mechanism, environment.noise(current))
    # Rule 3: by the expected cohort, never by the actual one.
    mean = mean_of(sums, mechanism.sample_rate * plan.devices)
    stepped, opt = optimiser.step(config, state.optimiser, trained, mean, rounds=mechanism.steps)
    averaged = optimiser.average(config, state.average, stepped, step=current + 1, rounds=mechanism.steps)
    return replace(state, round=current + 1, arrays={**state.arrays, **stepped}, optimiser=opt, average=averaged)
