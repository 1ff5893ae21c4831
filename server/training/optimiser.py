"""The global optimiser: how a mean update moves the model, and which average of iterates is released.

Everything here is a pure function over frozen state and works on releases only, so it costs no privacy. An
update points where the model should go (a local model minus the released one, or a negative gradient); a step
adds it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedrecall.protocol.errors import ConfigError, FedrecallError, UpdateError
from fedrecall.protocol.records import Arrays
from fedrecall.server.config import ServerConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class OptState:
    """State between steps.

    Attributes:
        step: steps taken.
        first: momentum (``fedavgm``) or first moments (``fedadam``); empty for ``sgd``.
        second: second moments (``fedadam``); empty otherwise.
    """

    step: int
    first: Arrays
    second: Arrays


@dataclass(frozen=True, kw_only=True, eq=False)
class AverageState:
    """The running average of iterates: ``arrays`` is what is released, over ``count`` iterates."""

    count: int
    arrays: Arrays


def init(config: ServerConfig, arrays: Arrays) -> OptState:
    """Return the state before the first step on ``arrays``, which are float32 or float64 and keep that dtype.

    Raises:
        ConfigError: a key of ``learning_rate_scales`` starts no name of ``arrays``.
        FedrecallError: an array has another dtype.
    """
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise FedrecallError(f"model array {name!r} is {array.dtype}: convert it to float32 or float64")
    for prefix in config.learning_rate_scales:
        if not any(name.startswith(prefix) for name in arrays):
            raise ConfigError(f"learning_rate_scales.{prefix!r} names no array; they are {sorted(arrays)}")
    zeros = {name: np.zeros_like(array) for name, array in arrays.items()}
    return OptState(
        step=0,
        first=zeros if config.optimiser != "sgd" else {},
        second={name: zero.copy() for name, zero in zeros.items()} if config.optimiser == "fedadam" else {},
    )


def step(
    config: ServerConfig, state: OptState, arrays: Arrays, update: Arrays, *, rounds: int
) -> tuple[dict[str, np.ndarray], OptState]:
    """Return the model after one step along ``update``, and the next state; no argument is changed.

    ``fedavgm`` is server momentum (Hsu and others 2019, arXiv 1909.06335, section 4.3), ``fedadam`` is
    algorithm 2 of Reddi and others 2021 (arXiv 2003.00295) with Adam's bias correction (Kingma and Ba 2015,
    algorithm 1).

    Args:
        config: optimiser, learning rate and schedule.
        state: from ``init`` or the step before.
        arrays: the model.
        update: the mean update, of the model's names and shapes; computed in the model's dtype.
        rounds: the horizon of the schedule.

    Raises:
        UpdateError: names or shapes differ from the model's, or a value is not finite.
    """
    rate = learning_rate(config, state.step, rounds=rounds)
    count = state.step + 1
    _check(arrays, update)
    new: dict[str, np.ndarray] = {}
    first: dict[str, np.ndarray] = {}
    second: dict[str, np.ndarray] = {}
    for name, weight in arrays.items():
        # Flat, because 0-d arrays decay to scalars under arithmetic.
        delta = update[name].astype(weight.dtype, copy=False).reshape(-1)
        scaled = rate * _scale(config.learning_rate_scales, name)
        if config.optimiser == "sgd":
            move = delta * scaled
        elif config.optimiser == "fedavgm":
            momentum = state.first[name].reshape(-1) * config.momentum
            momentum += delta
            first[name] = momentum.reshape(weight.shape)
            move = momentum * scaled
        else:
            mean = state.first[name].reshape(-1) * config.beta1
            mean += delta * (1 - config.beta1)
            square = np.square(delta)
            square *= 1 - config.beta2
            square += state.second[name].reshape(-1) * config.beta2
            first[name], second[name] = mean.reshape(weight.shape), square.reshape(weight.shape)
            move = np.sqrt(square)
            move *= 1 / math.sqrt(1 - config.beta2**count)
            move += config.adaptivity
            np.divide(mean, move, out=move)
            move *= scaled / (1 - config.beta1**count)
        move += weight.reshape(-1)
        new[name] = move.reshape(weight.shape)
    return new, OptState(step=count, first=first, second=second)


def learning_rate(config: ServerConfig, step: int, *, rounds: int) -> float:
    """Return the learning rate of ``step`` (the first is 0) in a run of ``rounds``; constant afterwards."""
    if step < config.warmup_rounds:
        return config.learning_rate * (step + 1) / config.warmup_rounds
    if config.schedule == "constant":
        return config.learning_rate
    progress = min(1.0, (step - config.warmup_rounds) / max(1, rounds - config.warmup_rounds))
    left = 1.0 - progress if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * (config.final_share + (1.0 - config.final_share) * left)


def average(
    config: ServerConfig, state: AverageState | None, arrays: Arrays, *, step: int, rounds: int
) -> AverageState:
    """Take the model ``arrays`` after ``step`` steps (1 to ``rounds``) into the average that is released.

    ``none`` returns the model itself. ``tail`` returns the model itself until its tail begins, then the even
    mean of the tail (Polyak and Juditsky 1992). ``ema`` weighs the newest by the larger of
    ``1 - ema_decay`` and ``1 / (count + 1)``: an even mean at first, so that no zero start needs correcting.
    ``state`` is ``None`` at the first call.
    """
    tail_begins = rounds - math.ceil(config.tail_share * rounds) + 1
    restart = config.average == "none" or (config.average == "tail" and step <= tail_begins)
    if state is None or restart:
        return AverageState(count=1, arrays=dict(arrays))
    weight = 1.0 / (state.count + 1)
    if config.average == "ema":
        weight = max(1.0 - config.ema_decay, weight)
    mixed = {}
    for name, array in arrays.items():
        old = state.arrays[name].reshape(-1)
        change = array.reshape(-1) - old
        change *= weight
        change += old
        mixed[name] = change.reshape(array.shape)
    return AverageState(count=state.count + 1, arrays=mixed)


def _scale(scales: Mapping[str, float], name: str) -> float:
    """Return the factor of the longest key that ``name`` starts with, else 1."""
    matching = [prefix for prefix in scales if name.startswith(prefix)]
    return scales[max(matching, key=len)] if matching else 1.0


def _check(arrays: Arrays, update: Arrays) -> None:
    """Refuse an update that does not fit the model or would spoil it."""
    if set(arrays) != set(update):
        raise UpdateError(f"the update has arrays {sorted(update)}, the model {sorted(arrays)}: send the same")
    for name, weight in arrays.items():
        if update[name].shape != weight.shape:
            raise UpdateError(
                f"the update of {name!r} has shape {update[name].shape}, the model {weight.shape}",
                reason="shape",
            )
        if not np.isfinite(update[name]).all():
            raise UpdateError(f"the update of {name!r} is not finite: lower the learning rates", reason="nan")
