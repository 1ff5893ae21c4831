"""Half a million draws of each mechanism's noise, by the functions that a run draws it with: what tails and hints need.

The rounds are those of the product, over the model's arrays repeated a few times, with a collector that answers zeros
at once. A plan of few rounds is made as one of many, with the same noise; of many rounds some are made, at random.
"""

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float64
from scipy.stats import norm

from fedrecall.client.training import trainer
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.server.training.rounds import ROUNDS, start_state
from fedrecall.simulations.audit.watching.draws import Draws, groups_of, isometry, standardised
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.watch import Watched, environment_of, watched_rounds
from fedrecall.simulations.audit.watching.wrapping import wired
from fedrecall.simulations.training import loop, simulated_noise, start
from fedrecall.simulations.training.world import World

_NUMBERS = 1 << 19
_ROUNDS = 128
_DEVICES = 8
_AT_ITS_BOUND = math.log(1e6) - 1e-9


def at_length(trial: Trial) -> tuple[dict[str, Draws], Watched | None]:
    """Return much noise of each mechanism, and the rounds of nothing where the server adds noise to them."""
    if "at length" not in trial.kept:
        trial.kept["at length"] = _at_length(trial)
    found: tuple[dict[str, Draws], Watched | None] = trial.kept["at length"]
    return found


def _at_length(trial: Trial) -> tuple[dict[str, Draws], Watched | None]:
    world, found, seen = _longer(trial), {}, None
    for mechanism in world.plan.mechanisms:
        if not (mechanism.steps and mechanism.noise_multiplier):
            continue
        if mechanism.name != ROUNDS:
            found[mechanism.name] = _draws(mechanism.name, _of_start(world, mechanism))
        elif world.plan.trust == "central":
            seen = _rounds_of_nothing(trial, world)
            values = standardised(trial, seen, np.array([r.released for r in seen.rounds]))
            found[ROUNDS] = Draws(values=values, groups=groups_of(seen))
        else:
            found["updates"] = _draws("updates", _of_devices(world, mechanism))
    return found, seen


def counts_drawn(trial: Trial, seen: Watched) -> Float64[np.ndarray, " rounds"]:
    """Return the noise of the counts that an adaptive clip followed, by the clips that were released.

    The clip of a round tells the noised count of the round before, unless its share was cut to 0 or 1: such a count
    stands for all beyond, and is drawn among them. Where the clip has come to its bound, nothing more is read.
    """
    mechanism, rng = trial.rounds, np.random.default_rng(trial.seed)
    settings, first = mechanism.adaptive_clip, mechanism.clip_norm
    expected = mechanism.sample_rate * seen.world.plan.devices
    found: list[float] = []
    if settings is None or first is None:
        return np.array(found)
    std = mechanism.count_noise_multiplier / 2
    for r in seen.rounds:
        clip_norm, after, within = r.clip_norm or first, r.next_clip or first, r.within or 0.0
        if max(abs(math.log(clip_norm / first)), abs(math.log(after / first))) >= _AT_ITS_BOUND:
            break
        share = settings.quantile - math.log(after / clip_norm) / settings.learning_rate
        score = ((share - 0.5) * expected - within) / std
        if share <= 1e-12:
            score = float(norm.ppf(rng.random() * norm.cdf(score)))
        elif share >= 1 - 1e-12:
            score = float(norm.isf(rng.random() * norm.sf(score)))
        found.append(score)
    return np.array(found)


def _longer(trial: Trial) -> World:
    """Return the world with a plan of enough rounds, and no start to wait for."""
    rounds = trial.rounds
    if 0 < rounds.steps < _ROUNDS:
        most = -(-_ROUNDS // rounds.turns) if rounds.sampling == "limited" else None
        rounds = replace(rounds, steps=_ROUNDS, participations=most)
    plan = replace(trial.plan, mechanisms=tuple(rounds if m.name == ROUNDS else m for m in trial.plan.mechanisms))
    bare = trial.world.config.start.model_copy(update={"enabled": False})
    return replace(trial.world, plan=plan, config=trial.world.config.model_copy(update={"start": bare}))


def _rounds_of_nothing(trial: Trial, world: World) -> Watched:
    folder = trial.folder / "at length"
    state, environment = environment_of(world, folder / "wired")
    mechanism = world.plan.mechanism(ROUNDS)
    size = sum(state.arrays[name].size for name in state.trained)
    times = max(1, -(-_NUMBERS // (_ROUNDS * size)))
    wide = {name: _repeated(array, times) for name, array in state.arrays.items()}
    zeros = {name: np.zeros(wide[name].shape) for name in state.trained}

    def nothing(round: int, arrays: Arrays, cohort: np.ndarray, clip_norm: float | None) -> CohortSum:
        summed, most = dict(zeros), len(cohort) / 2
        if mechanism.adaptive_clip is not None:
            # The count at which the clip stays where it is, so that its noise is seen from round to round.
            still = (mechanism.adaptive_clip.quantile - 0.5) * mechanism.sample_rate * world.plan.devices
            summed[WITHIN_CLIP] = np.asarray(min(most, max(-most, still)))
        return CohortSum(round=round, devices=len(cohort), arrays=summed)

    seen = Watched(world=world)
    many = max(4, min(_ROUNDS, -(-_NUMBERS // size)))
    watched_rounds(
        wired(loop, "run_rounds"),
        seen,
        start_state(world.config.server, wide, state.trained, mechanism.clip_norm),
        world.plan,
        replace(environment, collect=nothing),
        visit=replace(trial, world=world).some_rounds(many),
        config=world.config.server,
        ledger=NoLedger(),
        on_round=lambda _: None,
    )
    return seen


class NoLedger:
    """Stands where a ledger does: nothing is released of rounds that have no signal."""

    def charge(self, *_: object) -> bool:
        """Take any charge."""
        return True

    def charged(self, *_: object) -> bool:
        """Know of none."""
        return False


def _of_start(world: World, mechanism: Mechanism) -> np.ndarray:
    """Return the noise of a statistic of the start, over as many numbers as a catalogue never has."""
    noise = simulated_noise.server_noise(world, mechanism.name, 0)
    if mechanism.name == "second_moments":
        side = math.isqrt(2 * _NUMBERS)
        sums = CohortSum(round=0, devices=1, arrays={mechanism.name: np.zeros((side, side))})
        released = wired(start, "release_second_moments")(sums, mechanism, noise)
        return np.asarray(isometry(released.arrays[mechanism.name]) / mechanism.noise_multiplier)
    sums = CohortSum(round=0, devices=world.plan.devices, arrays={mechanism.name: np.zeros(_NUMBERS)})
    if world.plan.trust == "local":
        drawn = simulated_noise.released_locally(world, mechanism, sums).arrays[mechanism.name]
        return drawn / (mechanism.noise_multiplier * math.sqrt(world.plan.devices))
    released = wired(start, "release_popularity")(sums, mechanism, noise)
    return np.asarray(released.arrays[mechanism.name] / mechanism.noise_multiplier)


def _of_devices(world: World, mechanism: Mechanism) -> np.ndarray:
    """Return what devices of their own noise add to a wide update of nothing."""
    zeros, digest = {"updates": np.zeros(_NUMBERS // _DEVICES)}, world.plan.digest()
    sources = (SeededNoise(world.config.seed, digest, "device", device, 0) for device in range(_DEVICES))
    std = mechanism.noise_multiplier * (mechanism.clip_norm or 0.0)
    add = wired(trainer, "gaussian_sum")
    return np.array([add(zeros, mechanism, noise)["updates"] / std for noise in sources])


def _draws(name: str, values: np.ndarray) -> Draws:
    return Draws(values=np.atleast_2d(values), groups={name: slice(None)})


def _repeated(array: np.ndarray, times: int) -> np.ndarray:
    """Return an array as many times as long; a single number stays one."""
    return np.concatenate([array] * times) if array.ndim else array
