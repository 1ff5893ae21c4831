"""How each seeded bug is planted: wrapped functions of the wiring, changed worlds. None of it is sound."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from fedrecall.client.training import cohort, trainer
from fedrecall.client.training.start import popularity_sum
from fedrecall.privacy.mechanisms.mechanisms import clip_joint
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import CohortSum, Update
from fedrecall.server.training import aggregation, rounds, sampling
from fedrecall.simulations.audit.watching.wrapping import wrapped
from fedrecall.simulations.training import start
from fedrecall.simulations.training.world import World


def no_noise(_: Any) -> Any:
    """Add nothing to the sums."""
    return lambda sums, mechanism, noise: {name: np.array(sums[name], dtype=np.float64) for name in sorted(sums)}


def divided_twice(add: Any) -> Any:
    """Make the noise ten times too small: one division too many by a cohort, and by no large one."""

    def noised(sums: Any, mechanism: Mechanism, noise: Any) -> Any:
        return add(sums, replace(mechanism, noise_multiplier=mechanism.noise_multiplier / 10), noise)

    return noised


def touched_rows(add: Any) -> Any:
    """Add noise only where the sum is not zero."""

    def noised(sums: Any, mechanism: Mechanism, noise: Any) -> Any:
        full = add(sums, mechanism, noise)
        return {name: np.where(np.asarray(sums[name]) != 0, full[name], 0.0) for name in full}

    return noised


def touched_in_the_run(add: Any) -> Any:
    """Leave one row of the first table without noise, and only where other rows hold signal."""

    def noised(sums: Any, mechanism: Mechanism, noise: Any) -> Any:
        full = add(sums, mechanism, noise)
        for name in full:
            if full[name].ndim == 2 and len(full[name]) > 40 and np.any(sums[name]):
                full[name][7] = sums[name][7]
        return full

    return noised


@contextmanager
def clip_after_the_sum() -> Iterator[None]:
    """Let devices send what they like, and clip their sum."""

    def instead(collect: Any) -> Any:
        def summed(self: Any, *args: Any, clip_norm: float | None, **more: Any) -> CohortSum:
            bare: CohortSum = collect(self, *args, clip_norm=None, **more)
            if clip_norm is None:
                return bare
            return replace(bare, arrays=clip_joint(bare.arrays, clip_norm * max(1, bare.devices))[0])

        return summed

    with wrapped(cohort.Cohort, "collect", instead):
        yield


def same_every_round(make: Any) -> Any:
    """Draw the noise of round 0 in every round."""
    return lambda world, mechanism, round: make(world, mechanism, 0)


@contextmanager
def share_clipped_again() -> Iterator[None]:
    """Clip an update after its noise was added."""

    def instead(let_out: Any) -> Any:
        return lambda arrays, **more: let_out(arrays, **(more | {"clip_norm": 0.05}))

    with wrapped(trainer, "let_out", instead):
        yield


@contextmanager
def metric_beside() -> Iterator[None]:
    """Send a number of its own beside the sum, without noise."""

    def instead(collect: Any) -> Any:
        def summed(*args: Any, **more: Any) -> CohortSum:
            bare: CohortSum = collect(*args, **more)
            count = np.asarray(float(sum(np.any(a) for a in bare.arrays.values())))
            return replace(bare, arrays={**bare.arrays, "item.loss": count})

        return summed

    with wrapped(cohort.Cohort, "collect", instead), wrapped(rounds, "validate_cohort_sum", _accept):
        yield


def _accept(_: Any) -> Any:
    return lambda *args, **more: None


@contextmanager
def tower_in_payload() -> Iterator[None]:
    """Let weights of the user tower through the gate."""

    def instead(let_out: Any) -> Any:
        def out(*args: Any, **more: Any) -> Update:
            update: Update = let_out(*args, **more)
            return replace(update, arrays={**update.arrays, "user.out.weight": np.zeros(3, dtype=np.float32)})

        return out

    with wrapped(trainer, "let_out", instead), wrapped(aggregation, "validate_update", _accept):
        yield


@contextmanager
def constant_inside() -> Iterator[None]:
    """Hide a number of each device in an array that may leave: a private weight, say, whatever its events."""

    def instead(collect: Any) -> Any:
        def summed(*args: Any, clip_norm: float | None, **more: Any) -> CohortSum:
            bare: CohortSum = collect(*args, clip_norm=clip_norm, **more)
            arrays = {name: np.array(array) for name, array in bare.arrays.items()}
            arrays["transformer.out.bias"][0] += 0.5 * (clip_norm or 0.0) * bare.devices
            return replace(bare, arrays=arrays)

        return summed

    with wrapped(cohort.Cohort, "collect", instead):
        yield


def fixed_cohort(_: Any) -> Any:
    """Draw cohorts of one size."""
    return lambda devices, rate, rng: np.sort(rng.choice(devices, size=round(rate * devices), replace=False))


@contextmanager
def shuffled() -> Iterator[None]:
    """Cut one shuffled list of all devices into cohorts, and shuffle again when it is used up."""

    def instead(draw: Any) -> Any:
        def next_part(self: Any, round: int) -> np.ndarray:
            turns = int(np.rint(1 / self.sample_rate))
            order = np.random.default_rng(round // turns).permutation(self.devices)
            return np.sort(np.array_split(order, turns)[round % turns])

        return next_part

    with wrapped(sampling.Sampler, "draw", instead):
        yield


def single_shift(world: World) -> World:
    """Account blocks as if an event moved them by one clip."""
    mechanisms = []
    for mechanism in world.plan.mechanisms:
        if mechanism.name == "rounds":
            mechanism = replace(mechanism, adjacency="add_remove", noise_multiplier=mechanism.noise_multiplier / 2)
        mechanisms.append(mechanism)
    return replace(world, plan=replace(world.plan, mechanisms=tuple(mechanisms)))


def survivors_ignored(one_round: Any) -> Any:
    """Release a round however few answered."""

    def instead(state: Any, plan: Any, mechanism: Mechanism, *rest: Any, **more: Any) -> Any:
        return one_round(state, plan, replace(mechanism, min_survivors=0), *rest, **more)

    return instead


def with_tower(world: World) -> World:
    """Let blocks train a user tower without noise, which the configuration refuses."""
    local = world.config.local.model_copy(update={"tower_learning_rate": 0.5})
    return replace(world, config=world.config.model_copy(update={"local": local}))


class _Late:
    """A ledger that records only once the round is over."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger
        self._waiting: list[tuple[Any, ...]] = []

    def charge(self, *charge: Any) -> bool:
        self._waiting.append(charge)
        return True

    def charged(self, *release: Any) -> bool:
        return bool(self._ledger.charged(*release))

    def settle(self) -> None:
        while self._waiting:
            self._ledger.charge(*self._waiting.pop(0))


def charged_late(one_round: Any) -> Any:
    """Charge the ledger when the round is over."""

    def instead(*args: Any, ledger: Any, **more: Any) -> Any:
        late = _Late(ledger)
        state = one_round(*args, ledger=late, **more)
        late.settle()
        return state

    return instead


@contextmanager
def popularity_as_public() -> Iterator[None]:
    """Choose what second moments compare by the exact counts, as though popularity were public."""
    counts: dict[str, np.ndarray] = {}

    def remember(make: Any) -> Any:
        def summed(store: Any, unit: Any) -> CohortSum:
            counts["exact"] = popularity_sum(store, unit).arrays["popularity"]
            return make(store, unit)  # type: ignore[no-any-return]

        return summed

    def exact(choose: Any) -> Any:
        return lambda popularity, *rest, **more: choose(counts["exact"], *rest, **more)

    with ExitStack() as stack:
        stack.enter_context(wrapped(start, "popularity_sum", remember))
        stack.enter_context(wrapped(start, "compare", exact))
        yield


def unscaled_popularity(make: Any) -> Any:
    """Let a device count 1 for each of its items, however many they are."""
    return lambda store, unit: make(store, "interaction")


def enlarged_moments(make: Any) -> Any:
    """Make every device's comparisons larger than their bound by a hundredth."""

    def summed(store: Any, comparison: Any) -> CohortSum:
        bare: CohortSum = make(store, comparison)
        return replace(bare, arrays={name: 1.01 * array for name, array in bare.arrays.items()})

    return summed


def bare_popularity(release: Any) -> Any:
    """Release popularity as it is."""
    return lambda sums, mechanism, noise: release(sums, replace(mechanism, noise_multiplier=0.0), noise)


class Independent:
    """Noise of a round that forgets the rounds before it."""

    def __init__(self, coefficients: Any, steps: int, draw: Any) -> None:
        self.of = draw
