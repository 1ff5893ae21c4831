"""Membership of a device in the released model, by LiRA and RMIA, against the plan's epsilon."""

import time
from collections.abc import Iterator

import numpy as np

from fedrecall.protocol.randomness import public_rng
from fedrecall.simulations.audit.attacks.models.device_membership import TARGETS, attack_devices, device_bound
from fedrecall.simulations.audit.attacks.models.promotion import Defence, defended, train_under
from fedrecall.simulations.audit.attacks.models.shadow_models import train_shadows
from fedrecall.simulations.audit.attacks.scores import CONFIDENCE, Claim, auc, auc_interval, held_against, power, tpr_at
from fedrecall.simulations.audit.attacks.settings import claimed
from fedrecall.simulations.audit.watching.attempt import Attempt, Verdict
from fedrecall.simulations.training.world import Progress, World

DEVICES = "device membership"

_DEVICES = 2000


def attack_model(
    world: World,
    prefix: str,
    *,
    models: int,
    seconds: float,
    seed: int,
    progress: Progress,
    defence: Defence = "plan",
) -> Iterator[Attempt]:
    """Yield LiRA, then RMIA, on models that the run's training makes of random halves of the devices.

    Args:
        world: of the run.
        prefix: says in names how it differs from the run's.
        models: to train, at most; a quarter are attacked.
        seconds: for training; at least 4 models are trained whatever it takes.
        seed: of coins.
        progress: told of each model.
        defence: under which they are trained, instead of the plan.
    """
    began = time.perf_counter()
    rng = public_rng(seed, "attack on models")
    usable = np.flatnonzero(world.store.counts() >= 2)
    devices = np.sort(rng.permutation(usable)[:_DEVICES]).astype(np.int64)
    release = None if defence == "plan" else lambda own: train_under(own, defence)
    shadows = train_shadows(world, devices, models=models, seconds=seconds, rng=rng, progress=progress, release=release)
    plan = defended(world, defence).plan
    prefix += "" if defence == "plan" else f"{defence}, "
    epsilon = claimed(plan, "released-model") if plan.unit == "user" else None
    claim = Claim(epsilon=epsilon, delta=plan.delta, relation="add_remove")
    for name, guesses in attack_devices(shadows).items():
        bound = device_bound(guesses, claim)
        low, high = auc_interval(guesses, rng)
        verdict: Verdict = "shows"
        if epsilon is not None:
            verdict = "broken" if bound.epsilon > epsilon else "held"
        _, pairs = held_against(guesses, claim, rng)
        yield Attempt(
            name=f"{DEVICES}: {prefix}{name}",
            adversary="released-model",
            unit="user",
            what=(
                f"{len(shadows.signals)} models were trained on random halves of the devices, and from a quarter of "
                "them it was guessed whose events they learned from; success means telling that a person took part."
            ),
            score=auc(guesses),
            metric="auc",
            chance=0.5,
            low=low,
            high=high,
            confidence=CONFIDENCE,
            claimed_epsilon=epsilon,
            empirical_epsilon=bound.epsilon,
            power=power(guesses, plan.delta, (high - low) / 2),
            verdict=verdict,
            trials=len(guesses.truth),
            seconds=time.perf_counter() - began,
            detail={
                "models": len(shadows.signals),
                "targets": max(1, round(TARGETS * len(shadows.signals))),
                "tpr@0.1%": tpr_at(guesses, 1e-3),
                "tpr@1%": tpr_at(guesses, 1e-2),
                "bound": {"method": bound.method, "confidence": bound.confidence, "assumes": bound.assumes},
                "clopper_pearson": {
                    "epsilon": pairs.epsilon if pairs else None,
                    "assumes": "independent trials, though a model's coins share its noise",
                },
            },
        )
