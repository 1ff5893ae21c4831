"""Promotion poisoning under every defence: how many devices the promoted item reaches, and what recall it costs."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.stats import beta

from fedrecall.protocol.randomness import public_rng
from fedrecall.protocol.records import Arrays
from fedrecall.simulations.audit.attacks.models.fakes import (
    STRATEGIES,
    Strategy,
    choose_target,
    fake_histories,
    with_fakes,
    with_idle,
)
from fedrecall.simulations.audit.attacks.models.promotion import (
    DEFENCES,
    Defence,
    Outcome,
    hold_out,
    outcome,
    shortened,
    started,
    train_poisoned,
)
from fedrecall.simulations.audit.attacks.scores import CONFIDENCE, not_tested
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.training.world import Progress, World

SHARE = 0.01
"""Malicious devices, of the honest ones."""

_ROUNDS = 5
_DEVICES = 2000
_LENGTH = 30


def attack_training(world: World, prefix: str, *, seconds: float, seed: int, progress: Progress) -> Iterator[Attempt]:
    """Yield one attempt for each defence and strategy: exposure of the target before and after.

    Args:
        world: of the run; its unit must be ``user``.
        prefix: says in names how it differs from the run's.
        seconds: when they are over, what is left is not tested.
        seed: of target, fakes and robust cohorts.
        progress: told of each training.
    """
    began = time.perf_counter()
    if world.plan.unit != "user":
        why = (
            "Each device adds noise of its own, so the server cannot bound the norm of an update: a malicious device "
            "can send anything. Promotion is tested for unit user alone."
        )
        yield not_tested(f"promotion: {prefix}all", "malicious-device", world.plan.unit, why)
        return
    rng = public_rng(seed, "promotion")
    store, wanted = hold_out(world.store)
    world = shortened(replace(world, store=store), _ROUNDS)
    devices = np.sort(rng.permutation(store.n_users)[:_DEVICES]).astype(np.int64)
    target = choose_target(store, rng)
    fakes = max(1, round(SHARE * store.n_users))
    length = min(_LENGTH, world.shape.window + 1)
    staged = {"idle": with_idle(world, target, fakes)}
    for kind in ("random", "popular"):
        made = fake_histories(store, target, popular=kind == "popular", fakes=fakes, length=length, rng=rng)
        staged[kind] = with_fakes(world, target, made)
    staged["scaled"] = staged["popular"]
    starts: dict[tuple[int, bool], Arrays] = {}

    def recommended(kind: str, strategy: Strategy, defence: Defence) -> Outcome:
        key = id(staged[kind]), defence == "plan"
        if key not in starts:
            starts[key] = started(staged[kind], defence)
        arrays = train_poisoned(staged[kind], strategy, defence, starts[key])
        return outcome(world, arrays, devices, wanted[devices], target)

    before: dict[Defence, Outcome] = {}
    attempts = [(strategy, defence) for strategy in STRATEGIES for defence in DEFENCES]
    for done, (strategy, defence) in enumerate(attempts):
        progress("promotion", done, len(attempts))
        name = f"promotion: {prefix}{strategy}, {defence}"
        clock = time.perf_counter()
        if clock - began > seconds:
            yield not_tested(name, "malicious-device", "user", "the time given was over")
            continue
        if defence not in before:
            before[defence] = recommended("idle", "random", defence)
        after = recommended(strategy, strategy, defence)
        yield _row(name, strategy, defence, fakes, before[defence], after, time.perf_counter() - clock)
    progress("promotion", len(attempts), len(attempts))


def _row(
    name: str, strategy: Strategy, defence: Defence, fakes: int, before: Outcome, after: Outcome, seconds: float
) -> Attempt:
    hits, trials = after.exposed[10], after.devices
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) * trials if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) * trials if hits < trials else float(trials)
    return Attempt(
        name=name,
        adversary="malicious-device",
        unit="user",
        what=(
            f"{fakes} malicious devices ({strategy}) promoted one item under the defence {defence!r}; the score is how "
            "many honest devices have it among their first 10, chance is how many do without the attack."
        ),
        score=float(hits),
        metric="hits",
        chance=float(before.exposed[10]),
        low=low,
        high=high,
        confidence=CONFIDENCE,
        power=f"one device in {trials} would be seen",
        verdict="shows",
        trials=trials,
        seconds=seconds,
        detail={
            "malicious": fakes,
            **{f"exposure@{k} before": before.exposed[k] / max(1, before.devices) for k in before.exposed},
            **{f"exposure@{k} after": after.exposed[k] / max(1, after.devices) for k in after.exposed},
            **{f"recall@{k} before": before.hits[k] / max(1, before.devices) for k in before.hits},
            **{f"recall@{k} after": after.hits[k] / max(1, after.devices) for k in after.hits},
        },
    )
