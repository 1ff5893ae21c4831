"""Which cohort, rounds and noise fit a budget, a number of devices and what each device may spend.

Clipping and noise scale together, so nothing here depends on the clip: it follows the updates' norms (their median,
or an adaptive clip), and every figure says in which units it is. What the noise does to a training of so many rounds
is measured against the longest way that the clip lets the model go: ``rounds`` steps of ``clip_norm``, all in one
direction. Against that way the noise of the whole movement has the standard deviation
``root(rounds) * noise_multiplier / (cohort * rounds)`` in every direction: a floor of 1 / (devices * mu), which
everyone's taking part in every round reaches exactly, and a sampled or limited cohort at less cost only nearly. Noise
alone cannot say how many rounds the learning needs: that is ``min_rounds``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fedrecall.privacy.accounting.accounting import AdversaryEpsilon, account
from fedrecall.privacy.accounting.calibration import calibrate
from fedrecall.privacy.accounting.candidates import (
    ROUNDS,
    Need,
    amplified,
    candidates,
    device_rounds,
    search,
    without_coins,
)
from fedrecall.privacy.mechanisms.correlated import coefficients, prefix_error
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Mechanism, Plan, Sampling

_GAIN = 0.99


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A plan that spends the budget, and what its noise does to the training.

    Attributes:
        plan: mechanisms ``start`` (where ``share`` leaves it something) and ``rounds``.
        cohort: expected devices of a round.
        rounds: of the training.
        noise_multiplier: of the rounds.
        noise_of_mean: standard deviation of the noise in one number of a round's mean update, in the clip's units.
        noise_norm: L2 norm of the noise in a round's mean update over the clip; ``None`` without ``dimension``.
        movement_noise: standard deviation of the noise of the whole training in one direction, over the longest way
            that the clip lets the model go. Fits are ranked by it.
        signal_to_noise: of the whole training for one number, its way spread evenly over ``dimension`` numbers.
        device_rounds: how often a device is expected to take part; its most under ``limited``.
        adversaries: the rows of the plan.
        best: no other fit of its sampling is at least as cheap in device rounds with 1 % less noise.
    """

    plan: Plan
    cohort: int
    rounds: int
    noise_multiplier: float
    noise_of_mean: float
    noise_norm: float | None
    movement_noise: float
    signal_to_noise: float
    device_rounds: float
    adversaries: tuple[AdversaryEpsilon, ...]
    best: bool


def fit_plans(need: Need, most: int = 8, progress: Callable[[int, int], None] = lambda done, total: None) -> list[Fit]:
    """Return at most ``most`` fits: the ``best`` of every sampling by their noise, then the others by theirs.

    The search accounts coarsely (an upper bound, off by about 0.2 %); what is returned was calibrated again and is
    within 1e-3 of the budget. ``progress`` is told how many candidates of how many are done.

    Raises:
        PlanError: no candidate is within the bounds; or the budget is no epsilon and delta.
    """
    within = list(candidates(need))
    if not within:
        raise PlanError(
            f"no plan has {need.min_rounds} to {need.max_rounds} rounds within max_cohort {need.max_cohort} and "
            f"max_device_rounds {need.max_device_rounds}: raise a bound, or lower min_rounds"
        )
    total = len(within) + min(most, len(within))
    found: list[tuple[Mechanism, float]] = []
    for mechanism in within:
        scaled = replace(mechanism, noise_multiplier=search(need, mechanism))
        found.append((scaled, _movement_noise(need, scaled)))
        progress(len(found), total)
    best = _front(found)
    front = [f for f in found if f[0] in best]
    rest = sorted((f for f in found if f[0] not in best), key=lambda f: f[1])
    shown = sorted(_in_turn(front, most), key=lambda f: f[1]) + rest
    fits = []
    for mechanism, _ in shown[:most]:
        fits.append(_fit(need, mechanism, best=mechanism in best))
        progress(len(found) + len(fits), total)
    return fits


def _fit(need: Need, mechanism: Mechanism, *, best: bool) -> Fit:
    """Calibrate a candidate finely, and say what it costs and gives."""
    if amplified(need, mechanism):
        unsampled = replace(mechanism, sampling="everyone", sample_rate=1.0)
        plan = without_coins(need, unsampled)

        def with_noise(factor: float) -> Plan:
            # The search was close: small steps around it.
            scaled = replace(mechanism, noise_multiplier=mechanism.noise_multiplier * factor**0.05)
            return replace(plan, mechanisms=(*plan.mechanisms[:-1], scaled))

        plan = with_noise(calibrate(with_noise, need.epsilon))
    else:
        plan = without_coins(need, mechanism)
    mechanism = plan.mechanism(ROUNDS)
    cohort, dimension = mechanism.sample_rate * need.devices, need.dimension
    relative = _sum_noise(need, mechanism) * float(np.linalg.norm(coefficients(mechanism.bands))) / cohort
    movement = _movement_noise(need, mechanism)
    return Fit(
        plan=plan,
        cohort=plan.cohort_size(mechanism),
        rounds=mechanism.steps,
        noise_multiplier=mechanism.noise_multiplier,
        noise_of_mean=relative * need.clip_norm,
        noise_norm=None if dimension is None else relative * math.sqrt(dimension),
        movement_noise=movement,
        signal_to_noise=1 / (movement * math.sqrt(dimension or 1)),
        device_rounds=device_rounds(mechanism),
        adversaries=account(plan),
        best=best,
    )


def _sum_noise(need: Need, mechanism: Mechanism) -> float:
    """Return the standard deviation, over the clip, of the noise that a whole cohort's sum really carries."""
    cohort = mechanism.sample_rate * need.devices
    shares = {"central": 1.0, "local": cohort, "distributed": cohort / max(1, mechanism.min_survivors)}
    return mechanism.noise_multiplier * math.sqrt(shares[need.trust])


def _movement_noise(need: Need, mechanism: Mechanism) -> float:
    whole = prefix_error(coefficients(mechanism.bands), mechanism.steps)[1]
    return _sum_noise(need, mechanism) * whole / (mechanism.sample_rate * need.devices * mechanism.steps)


def _front(found: list[tuple[Mechanism, float]]) -> set[Mechanism]:
    """Return, of each sampling, those that buy at least 1 % less noise than all that are as cheap."""
    best: set[Mechanism] = set()
    least: dict[Sampling, float] = {}
    for mechanism, noise in sorted(found, key=lambda f: (device_rounds(f[0]), f[1])):
        if noise < _GAIN * least.get(mechanism.sampling, math.inf):
            least[mechanism.sampling] = noise
            best.add(mechanism)
    return best


def _in_turn(front: list[tuple[Mechanism, float]], most: int) -> list[tuple[Mechanism, float]]:
    """Return at most ``most`` of the front, an equal part of every sampling, spread from cheap to good."""
    kinds: dict[Sampling, list[tuple[Mechanism, float]]] = {}
    for fit in sorted(front, key=lambda f: device_rounds(f[0])):
        kinds.setdefault(fit[0].sampling, []).append(fit)
    kept: list[tuple[Mechanism, float]] = []
    for i, own in enumerate(sorted(kinds.values(), key=len)):
        room = min(len(own), (most - len(kept)) // (len(kinds) - i))
        last = len(own) - 1
        kept += [own[last - j * last // max(1, room - 1)] for j in range(room)]
    return kept
