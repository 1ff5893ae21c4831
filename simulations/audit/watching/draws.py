"""Noise, taken out of what was released and measured in its stated deviations: what ought to be independent normals.

From a training of devices without events it comes as it is. From a normal one all that is known is subtracted: what
devices sent, and what canaries added. Correlated noise is turned back into the independent draws that it was made of.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from scipy.linalg import solve_triangular

from fedrecall.client.training.start import popularity_sum, second_moments
from fedrecall.privacy.mechanisms.correlated import coefficients
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import CohortSum
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.watch import Watched, flat
from fedrecall.simulations.training.world import World

_FEW_DEVICES, _FEW_ROUNDS = 8, 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Draws:
    """Noise of one mechanism, in its standard deviations.

    Attributes:
        values: a row a draw (a round, a device).
        groups: its arrays, as parts of a row.
        signals: what the noise of each row was added to, without noise, in any unit; ``None`` for nothing.
        ordered: rows are rounds in order, and each may know the signals of those before it too.
    """

    values: Float64[np.ndarray, "draws coordinates"]
    groups: Mapping[str, slice]
    signals: Float64[np.ndarray, "draws coordinates"] | None = None
    ordered: bool = False


def drawn_alone(trial: Trial) -> dict[str, Draws]:
    """Return the noise of every mechanism in a training of devices that hold nothing."""
    if "alone" not in trial.kept:
        trial.kept["alone"] = _alone(trial)
    return dict(trial.kept["alone"])


def drawn_in_the_run(trial: Trial) -> dict[str, Draws]:
    """Return the noise of every mechanism in a normal training with canaries, what is known being subtracted."""
    if "in the run" not in trial.kept:
        trial.kept["in the run"] = _in_the_run(trial)
    return dict(trial.kept["in the run"])


def _alone(trial: Trial) -> dict[str, Draws]:
    found = {}
    for mechanism in _start(trial):
        released = start_released(trial.noise, mechanism)
        if released is not None:
            found[mechanism.name] = _of_start(trial.world, mechanism, released)
    if _noised(trial.rounds):
        if trial.plan.trust == "local":
            updates = [
                r.updates / trial.rounds_std(r.clip_norm) for r in trial.each_device.rounds if r.updates is not None
            ]
            found["updates"] = Draws(values=np.concatenate(updates), groups=groups_of(trial.each_device))
        if trial.noise.rounds:
            # Devices without events send zeros: of theirs nothing is subtracted, so that anything else they send shows.
            sums = np.array([r.released for r in trial.noise.rounds])
            found["rounds"] = Draws(values=standardised(trial, trial.noise, sums), groups=groups_of(trial.noise))
    return found


def _in_the_run(trial: Trial) -> dict[str, Draws]:
    found = {}
    for mechanism in _start(trial):
        released = start_released(trial.watched, mechanism)
        if released is not None:
            known = _known(trial, mechanism)
            draws = _of_start(trial.enrolled[0], mechanism, released - known)
            found[mechanism.name] = replace(draws, signals=_row(mechanism, known)[None])
    if not _noised(trial.rounds):
        return found
    if trial.plan.trust == "local":
        return found | {"updates": _updates_in_the_run(trial)}
    seen = trial.watched
    if seen.rounds:
        known, sums = known_sums(trial), np.array([r.released for r in seen.rounds])
        values = standardised(trial, seen, sums - known)
        found["rounds"] = Draws(values=values, groups=groups_of(seen), signals=known, ordered=True)
    return found


def known_sums(trial: Trial) -> Float64[np.ndarray, "rounds coordinates"]:
    """Return what the rounds of the training with canaries summed, without noise."""
    seen, canaries = trial.watched, trial.enrolled[1]
    known = [r.collected.copy() for r in seen.rounds]
    if seen.directions is not None:
        for row, r in zip(known, seen.rounds, strict=True):
            taking_part = canaries.coins & np.isin(canaries.devices, r.cohort)
            row += (r.clip_norm or 0.0) * seen.directions.sum(taking_part)
    return np.array(known)


def standardised(
    trial: Trial, seen: Watched, noise: Float64[np.ndarray, "rounds coordinates"]
) -> Float64[np.ndarray, "rounds coordinates"]:
    """Return the noise of sums of rounds as independent draws, in their standard deviations."""
    return np.asarray(whitened(trial, seen, noise) / round_stds(trial, seen)[:, None])


def whitened(trial: Trial, seen: Watched, sums: np.ndarray) -> np.ndarray:
    """Return rounds' sums with the correlation of their noise undone, whichever rounds were made.

    Of noise D z the rounds that were made hold D' z, D' being their rows: with D' D'^T = L L^T, L^-1 of it is as
    independent as z is, and is z itself where the first rounds were made, in order.
    """
    if trial.rounds.bands == 1:
        return sums
    rounds, d = [r.round for r in seen.rounds], coefficients(trial.rounds.bands)
    mixing = np.zeros((len(rounds), max(rounds) + 1))
    for row, round in zip(mixing, rounds, strict=True):
        kept = d[: round + 1]
        row[round - len(kept) + 1 : round + 1] = kept[::-1]
    return np.asarray(solve_triangular(np.linalg.cholesky(mixing @ mixing.T), sums, lower=True))


def round_stds(trial: Trial, seen: Watched) -> np.ndarray:
    """Return the standard deviation of each round's noise in the sum, as the plan states it."""
    senders = np.array([np.sqrt(len(r.cohort)) if trial.plan.trust == "local" else 1.0 for r in seen.rounds])
    return senders * [trial.rounds_std(r.clip_norm) for r in seen.rounds]


def isometry(matrix: np.ndarray) -> np.ndarray:
    """Return a symmetric matrix as the vector of the same norm."""
    return np.concatenate([np.diagonal(matrix), matrix[np.triu_indices(len(matrix), k=1)] * np.sqrt(2)])


def start_released(seen: Watched, mechanism: Mechanism) -> np.ndarray | None:
    """Return what the start of a training released of ``mechanism``."""
    released = seen.start.get("popularity" if mechanism.name == "popularity" else "moments")
    return None if released is None else np.asarray(released, dtype=np.float64)


def _start(trial: Trial) -> list[Mechanism]:
    return [m for m in trial.plan.mechanisms if m.name in ("popularity", "second_moments") and _noised(m)]


def _noised(mechanism: Mechanism) -> bool:
    return bool(mechanism.steps and mechanism.noise_multiplier)


def _of_start(world: World, mechanism: Mechanism, noise: np.ndarray) -> Draws:
    std = mechanism.sum_noise_multiplier * (mechanism.clip_norm or 0.0)
    if world.plan.trust == "local":
        std *= np.sqrt(world.plan.devices)
    groups = {mechanism.name: slice(None)}
    if mechanism.name == "second_moments":
        groups = {"diagonal": slice(0, len(noise)), "pairs": slice(len(noise), None)}
    return Draws(values=_row(mechanism, noise)[None] / std, groups=groups)


def _row(mechanism: Mechanism, values: np.ndarray) -> np.ndarray:
    return isometry(values) if mechanism.name == "second_moments" else values


def _known(trial: Trial, mechanism: Mechanism) -> np.ndarray:
    """Return the sum that the start of the training with canaries added noise to."""
    world, canaries = trial.enrolled
    if mechanism.name == "popularity":
        return popularity_sum(world.store, trial.plan.unit).arrays["popularity"]
    comparison = trial.watched.start["comparison"]
    own = (second_moments(items.astype(np.int32), comparison) for items in canaries.items[canaries.coins])
    return sum(own, start=trial.others_moments.copy())


def _updates_in_the_run(trial: Trial) -> Draws:
    """Return the noise that some devices of the run add to their updates: with it, minus without."""
    config = trial.world.config.model_copy(update={"engine": "device"})
    # Noise follows the plan: under another one it is none of that which the training without events drew.
    world = replace(trial.world, config=config, plan=replace(trial.plan, devices=trial.plan.devices + 1))
    without = tuple(replace(m, noise_multiplier=0.0) for m in world.plan.mechanisms)
    clean = replace(world, plan=replace(world.plan, mechanisms=without))
    counts, state = world.store.counts(), trial.wired[0]
    others = np.random.default_rng(trial.seed).permutation(world.store.n_users)[: _FEW_DEVICES - 1]
    devices = np.unique(np.append(others, np.argmax(counts)))
    names, rows = sorted(state.trained), []
    for round in trial.some_rounds(_FEW_ROUNDS + 2)[-_FEW_ROUNDS:]:
        for which in (world, clean):
            got = trial.wired_with(which).collect(round, state.arrays, devices, trial.rounds.clip_norm)
            if isinstance(got, CohortSum):  # one device's engine never sums
                continue
            rows.append(np.array([flat(update.arrays, names) for update in got]))
    signals = np.concatenate(rows[1::2])
    values = (np.concatenate(rows[::2]) - signals) / trial.rounds_std(trial.rounds.clip_norm)
    return Draws(values=values, groups=groups_of(trial.noise), signals=signals)


def groups_of(seen: Watched) -> dict[str, slice]:
    """Return the trained arrays of a training, as parts of a flat row."""
    ends = np.cumsum(list(seen.sizes.values()))
    return {name: slice(int(end - seen.sizes[name]), int(end)) for name, end in zip(seen.sizes, ends, strict=True)}
