"""Each released state, worked out again from the one before it and the round's noised mean, which is all that is new.

The arithmetic is the audit's own, in float64, from the configuration and the papers that the optimisers come from: what
stands between the noised mean and the released weights must be a function of releases and of public numbers alone
(docs/privacy.md, rule 17). Whatever else was added on the way, after the optimiser or in the average, is a difference.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from fedrecall.protocol.records import Arrays
from fedrecall.server.config import ServerConfig
from fedrecall.server.training.optimiser import average, step
from fedrecall.server.training.rounds import ServerState

ULPS = 8.0
"""Roundings of the model's dtype that a released number may differ by, of the numbers that it was made of."""


def moved_faults(
    config: ServerConfig, before: ServerState, after: ServerState, mean: Arrays | None, *, rounds: int, adapts: bool
) -> list[str]:
    """Return where the state ``after`` a round is not what ``mean`` makes of the one ``before``; empty where it is.

    Without a ``mean`` the round was void, and nothing may have moved. ``rounds`` is the horizon; a clip that
    ``adapts`` has a check of its own.
    """
    kept = [name for name in before.arrays if name not in before.trained]
    faults = _other_bits("an array that rounds do not train", before.arrays, after.arrays, kept)
    if set(after.arrays) != set(before.arrays):
        faults.append("the released model has other arrays than before")
    if not adapts and after.clip_norm != before.clip_norm:
        faults.append(f"the clip of round {after.round} is {after.clip_norm}, the plan keeps it at {before.clip_norm}")
    if mean is None:
        return faults + _still(before, after)
    faults += _stepped(config, before, after, mean, rounds) + _averaged(config, before, after, rounds)
    return faults or _by_the_product(config, before, after, mean, rounds)


def _by_the_product(
    config: ServerConfig, before: ServerState, after: ServerState, mean: Arrays, rounds: int
) -> list[str]:
    """Compare with what the product's own step and average make of the same, to the bit: room for no message at all."""
    trained = {name: before.arrays[name] for name in before.trained}
    arrays, opt = step(config, before.optimiser, trained, mean, rounds=rounds)
    averaged = average(config, before.average, arrays, step=after.round, rounds=rounds)
    pairs = (
        ("weights", arrays, after.arrays),
        ("momentum", opt.first, after.optimiser.first),
        ("second moments", opt.second, after.optimiser.second),
        ("average", averaged.arrays, {} if after.average is None else after.average.arrays),
    )
    faults = [fault for what, made, found in pairs for fault in _other_bits(what, made, found, made)]
    return [f"{fault} in its last bits after the optimiser" for fault in faults]


def overlaid(state: ServerState) -> dict[str, np.ndarray]:
    """Return what a state releases: averaged arrays where there are any, the others as they are."""
    return {**state.arrays, **(state.average.arrays if state.average is not None else {})}


def _still(before: ServerState, after: ServerState) -> list[str]:
    pairs = (
        ("weights", before.arrays, after.arrays),
        ("average", overlaid(before), overlaid(after)),
        ("momentum", before.optimiser.first, after.optimiser.first),
        ("second moments", before.optimiser.second, after.optimiser.second),
    )
    faults = [fault for what, old, new in pairs for fault in _other_bits(what, old, new, old)]
    return [f"{fault}, and the optimiser was given nothing" for fault in faults]


def _stepped(config: ServerConfig, before: ServerState, after: ServerState, mean: Arrays, rounds: int) -> list[str]:
    """Compare weights and the optimiser's state with one step along ``mean``."""
    old, new = before.optimiser, after.optimiser
    faults = [] if new.step == old.step + 1 else ["the optimiser's steps are not one more than before"]
    for name in before.trained:
        weight, delta = _wide(before.arrays[name]), _wide(mean[name])
        ulps = ULPS * float(np.finfo(before.arrays[name].dtype).eps)
        rate = _rate(config, old.step, rounds) * _factor(config.learning_rate_scales, name)
        if config.optimiser == "sgd":
            move = rate * delta
        elif config.optimiser == "fedavgm":
            fading = config.momentum * _wide(old.first[name])
            faults += _differs("momentum of", name, new.first, fading + delta, ulps * (abs(fading) + abs(delta)))
            move = rate * _wide(new.first[name])
        else:
            first = config.beta1 * _wide(old.first[name]), (1.0 - config.beta1) * delta
            second = config.beta2 * _wide(old.second[name]), (1.0 - config.beta2) * delta**2
            for what, parts, found in (("momentum of", first, new.first), ("second moments of", second, new.second)):
                faults += _differs(what, name, found, parts[0] + parts[1], ulps * (abs(parts[0]) + abs(parts[1])))
            mean_now = _wide(new.first[name]) / (1.0 - config.beta1**new.step)
            root = np.sqrt(_wide(new.second[name]) / (1.0 - config.beta2**new.step))
            move = rate * mean_now / (root + config.adaptivity)
        faults += _differs("weights of", name, after.arrays, weight + move, ulps * (abs(weight) + abs(move)))
    return faults


def _averaged(config: ServerConfig, before: ServerState, after: ServerState, rounds: int) -> list[str]:
    """Compare the average with the one before it and the newest weights."""
    if after.average is None:
        return ["there is no average of what was released"]
    newest = {name: after.arrays[name] for name in before.trained}
    if set(after.average.arrays) != set(newest):
        return ["the average is over other arrays than rounds train"]
    begins = rounds - math.ceil(config.tail_share * rounds) + 1
    fresh = config.average == "none" or (config.average == "tail" and after.round <= begins)
    if before.average is None or fresh:
        return _other_bits("average", newest, after.average.arrays, newest)
    count = before.average.count + 1
    share = max(1.0 - config.ema_decay, 1.0 / count) if config.average == "ema" else 1.0 / count
    faults = [] if after.average.count == count else [f"the average counts {after.average.count} iterates, not {count}"]
    for name, array in newest.items():
        old, new = _wide(before.average.arrays[name]), _wide(array)
        slack = ULPS * float(np.finfo(array.dtype).eps) * (abs(old) + abs(new))
        faults += _differs("average of", name, after.average.arrays, old + share * (new - old), slack)
    return faults


def _rate(config: ServerConfig, step: int, rounds: int) -> float:
    """Return the learning rate of a step: a linear rise, then what the schedule leaves of it."""
    if step < config.warmup_rounds:
        return config.learning_rate * (step + 1) / config.warmup_rounds
    done = min(1.0, (step - config.warmup_rounds) / max(1, rounds - config.warmup_rounds))
    left = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2.0}[config.schedule]
    least = 0.0 if config.schedule == "constant" else config.final_share
    return config.learning_rate * (least + (1.0 - least) * left)


def _factor(scales: Mapping[str, float], name: str) -> float:
    return max(((len(key), scale) for key, scale in scales.items() if name.startswith(key)), default=(0, 1.0))[1]


def _wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, dtype=np.float64)


def _differs(what: str, name: str, found: Arrays, expected: np.ndarray, slack: np.ndarray) -> list[str]:
    """Compare an array with what it should be; ``slack`` is what rounding explains of each number."""
    if found[name].shape != expected.shape:
        return [f"{what} {name} have another shape"]
    beyond = abs(_wide(found[name]) - expected)
    # Written so that NaN is beyond too; the smallest numbers of a dtype have no relative rounding.
    wrong = ~(beyond <= slack + np.finfo(found[name].dtype).tiny)
    if not wrong.any():
        return []
    return [f"{what} {name} are not what the noised mean makes of them: off by up to {np.nanmax(beyond):.2e}"]


def _other_bits(what: str, old: Arrays, new: Arrays, names: Iterable[str]) -> list[str]:
    """Compare arrays that must not have changed, to the bit."""
    same = (name for name in names if name not in new or not np.array_equal(old[name], new[name]))
    return [f"{what}: {name} changed" for name in same]
