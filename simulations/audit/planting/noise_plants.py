"""Seeded bugs of noise: it depends on other noise, has no tails, or ends. None of it is sound."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.plan import Mechanism

Edit = Callable[[np.ndarray], np.ndarray]
"""From an array's noise in its deviations to what is added instead."""


def edited(edit: Edit) -> Callable[[Any], Any]:
    """Change the noise that is added to every array of a sum."""

    def wrap(add: Any) -> Any:
        def noised(sums: Mapping[str, np.ndarray], mechanism: Mechanism, noise: Any) -> Any:
            full, std = add(sums, mechanism, noise), mechanism.noise_multiplier * (mechanism.clip_norm or 0.0)
            if not std:
                return full
            return {name: sums[name] + std * edit((full[name] - sums[name]) / std) for name in full}

        return noised

    return wrap


def halves(noise: np.ndarray) -> np.ndarray:
    """Copy the first half of an array's noise into the second."""
    row = noise.reshape(-1).copy()
    half = row.size // 2
    row[half : 2 * half] = row[:half]
    return row.reshape(noise.shape)


def cut(noise: np.ndarray) -> np.ndarray:
    """Cut noise at 3.5 deviations."""
    return np.asarray(np.clip(noise, -3.5, 3.5))


def drawn_again(noise: np.ndarray) -> np.ndarray:
    """Replace what lies beyond four deviations, as though it had been drawn once more."""
    return np.where(np.abs(noise) > 4.0, np.fmod(noise, 1.0), noise)


def centred(noise: np.ndarray) -> np.ndarray:
    """Take the mean of an array's noise away: its sum is then without any."""
    return np.asarray(noise - noise.mean()) if noise.size > 16 else noise


def deployed_cut(added: Any) -> Any:
    """Cut what a deployment's source adds at three deviations."""

    def noised(self: Any, values: Any, std: float) -> Any:
        return np.clip(added(self, values, std), values - 3.0 * std, values + 3.0 * std)

    return noised


def one_direction(noise: np.ndarray) -> np.ndarray:
    """Turn each pair of numbers to one of 256 directions, as a generator with a byte for the angle makes them."""
    row = noise.reshape(-1).copy()
    pairs = row[: row.size // 2 * 2].reshape(-1, 2)
    size, angle = np.hypot(*pairs.T), np.rint(np.arctan2(*pairs.T) * 128 / np.pi) * np.pi / 128
    pairs[:] = np.stack([size * np.sin(angle), size * np.cos(angle)], axis=1)
    return row.reshape(noise.shape)


def one_for_all(make: Any) -> Any:
    """Draw the noise of the rounds for every mechanism."""
    return lambda world, mechanism, round: make(world, "rounds", round)


def again_later(make: Any) -> Any:
    """Draw the noise of the second moments once more in round 3."""

    def drawn(world: Any, mechanism: str, round: int) -> Any:
        return (
            make(world, "second_moments", 0) if (mechanism, round) == ("rounds", 3) else make(world, mechanism, round)
        )

    return drawn


class _Turned:
    """Noise with another sign, in another order."""

    def __init__(self, source: Any) -> None:
        self.simulated, self._source = source.simulated, source

    def normal(self, shape: tuple[int, ...], std: float, dtype: Any = np.float64) -> Any:
        drawn = self._source.normal(shape, std, dtype).reshape(-1)
        return -np.random.default_rng(0).permutation(drawn).reshape(shape)

    def added(self, values: Any, std: float) -> Any:
        return values + self.normal(np.shape(values), std)


def turned_later(make: Any) -> Any:
    """Draw the noise of round 1 once more in round 2, with another sign and in another order."""

    def drawn(world: Any, mechanism: str, round: int) -> Any:
        return (
            _Turned(make(world, mechanism, 1)) if (mechanism, round) == ("rounds", 2) else make(world, mechanism, round)
        )

    return drawn


def ends(one_round: Any) -> Any:
    """Add no noise from round 3 on."""

    def instead(state: Any, plan: Any, mechanism: Mechanism, *rest: Any, **more: Any) -> Any:
        silent = replace(mechanism, noise_multiplier=0.0) if state.round >= 3 else mechanism
        return one_round(state, plan, silent, *rest, **more)

    return instead


def shared_by_devices(make: Any) -> Any:
    """Let all devices of a round draw the noise of the first."""
    return lambda seed, digest, who, device, round: make(seed, digest, who, 0, round)


def count_from_sum(add: Any) -> Any:
    """Take the count's noise from the first number of the sum."""

    def noised(sums: Any, mechanism: Mechanism, clip_norm: float, noise: Any) -> Any:
        full = add(sums, mechanism, clip_norm, noise)
        name = min(name for name in full if name != WITHIN_CLIP)
        drawn = (full[name].reshape(-1)[0] - sums[name].reshape(-1)[0]) / (mechanism.sum_noise_multiplier * clip_norm)
        return {**full, WITHIN_CLIP: np.asarray(sums[WITHIN_CLIP] + drawn * mechanism.count_noise_multiplier / 2)}

    return noised


def sized_by_first_clip(add: Any) -> Any:
    """Size the noise of every round by the first clip, wherever the clip goes."""

    def noised(sums: Any, mechanism: Mechanism, clip_norm: float, noise: Any) -> Any:
        return add(sums, mechanism, mechanism.clip_norm or clip_norm, noise)

    return noised
