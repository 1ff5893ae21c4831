"""Promotion poisoning: malicious devices train along so that everybody is recommended one item.

The rounds are the run's own round loop; the collector adds what malicious devices send, and is the defence. Their
part in the private start is made by honest code from made-up histories: it is scaled to norm 1 whatever they want.
"""

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Int32, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.client.recall.retrieval import query_vectors, shared_transformer
from fedrecall.client.training.cohort import Cohort
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.models.recall import ITEM_ID
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.privacy.mechanisms.mechanisms import clip_joint, joint_norm
from fedrecall.protocol.randomness import derive_seed, public_rng
from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.server.training.rounds import ROUNDS, Environment, run_rounds, start_state
from fedrecall.server.training.sampling import Sampler
from fedrecall.simulations.audit.attacks.models.fakes import Staged, Strategy
from fedrecall.simulations.audit.attacks.observed import holds
from fedrecall.simulations.audit.attacks.robust import Robust, aggregate_all
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.simulated_noise import noise_key, server_noise
from fedrecall.simulations.training.start import start_arrays
from fedrecall.simulations.training.world import World, cohort_of, trained_names

Defence = Literal["none", "plan", "norm bound", "median", "trimmed mean"]
DEFENCES: tuple[Defence, ...] = get_args(Defence)

_ROBUST_COHORT = 256
"""Devices of a round under robust aggregation, which holds every update at once."""

_AT_ONCE = 512

_BIAS = "transformer.recency.project.bias"

CUTOFFS = (10, 50)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a model recommends to honest devices.

    Attributes:
        devices: those counted: they lack the target and have a held-out event.
        exposed: by cut-off: devices whose list shows the target.
        hits: by cut-off: devices whose list shows their held-out event.
    """

    devices: int
    exposed: dict[int, int]
    hits: dict[int, int]


def shortened(world: World, rounds: int) -> World:
    """Return the world with at most so many rounds, under a plan of the same epsilon."""
    count = min(rounds, world.config.rounds.count)
    config = world.config.model_copy(update={"rounds": world.config.rounds.model_copy(update={"count": count})})
    return replace(world, config=config, plan=plan_for(config, world.plan.devices))


def defended(world: World, defence: Defence) -> World:
    """Return the world under the defence's plan: the run's, or one without noise; with the clip for ``norm bound``."""
    if defence == "plan":
        return world
    config = world.config.model_copy(update={"privacy": world.config.privacy.model_copy(update={"epsilon": None})})
    plan = plan_for(config, world.plan.devices)
    if defence == "norm bound":
        bound = world.config.privacy.clip_norm
        plan = replace(
            plan, mechanisms=tuple(replace(m, clip_norm=bound) if m.name == ROUNDS else m for m in plan.mechanisms)
        )
    return replace(world, config=config, plan=plan)


def started(staged: Staged, defence: Defence) -> dict[str, np.ndarray]:
    """Return the first model, to which malicious devices contributed; the same for all defences but the plan."""
    return start_arrays(defended(staged.world, defence), lambda name: None, lambda *_: None)[0]


def train_poisoned(staged: Staged, strategy: Strategy, defence: Defence, start: Arrays) -> dict[str, np.ndarray]:
    """Return the released model after rounds in which the malicious devices take part like all others.

    Args:
        staged: the world with the malicious devices.
        strategy: whether they scale what they send.
        defence: what the collector and the plan do about it.
        start: from ``started``.
    """
    world = defended(staged.world, defence)
    plan = world.plan
    mechanism = plan.mechanism(ROUNDS)
    state = start_state(world.config.server, start, trained_names(world), mechanism.clip_norm)
    cohort = cohort_of(world)

    def collect(round: int, arrays: Arrays, users: np.ndarray, clip_norm: float | None) -> CohortSum:
        if defence in ("median", "trimmed mean"):
            sums = _robust(cohort, staged, strategy, defence, round, arrays, users)
            return CohortSum(round=round, devices=len(users), arrays=sums)
        scaled = users[users >= staged.honest] if strategy == "scaled" else users[:0]
        total = cohort.collect(round, arrays, users[: len(users) - len(scaled)], clip_norm=clip_norm).arrays
        for device in scaled.tolist():
            sent = _scaled(cohort, staged, round, arrays, device)
            bounded = sent if clip_norm is None else clip_joint(sent, clip_norm)[0]
            total = {name: total[name] + bounded[name] for name in total}
        return CohortSum(round=round, devices=len(users), arrays=total)

    environment = Environment(
        collect=collect,
        sampler=Sampler.of(
            mechanism,
            plan.devices,
            lambda round: np.random.default_rng(derive_seed(world.config.seed, "cohort", plan.digest(), round)),
        ),
        noise=lambda round: server_noise(world, mechanism.name, round),
        key=lambda round: noise_key(world, mechanism.name, round),
    )
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "ledger.jsonl", plan)
        config = world.config.server
        return run_rounds(
            state, plan, environment, config=config, ledger=ledger, on_round=lambda state: None
        ).released()


def train_under(world: World, defence: Defence) -> dict[str, np.ndarray]:
    """Return the model that ``world`` releases under another defence than its plan, with nobody malicious in it."""
    honest = Staged(world=world, fakes=0, target=0)
    return train_poisoned(honest, "random", defence, started(honest, defence))


def hold_out(store: EventStore) -> tuple[EventStore, Int32[np.ndarray, " devices"]]:
    """Return the store without each device's last event, and that event's item; -1 for a device with fewer than 2."""
    held = np.full(store.n_users, -1, dtype=np.int32)
    enough = store.counts() >= 2
    last = store.offsets[1:][enough] - 1
    held[enough] = store.items[last]
    keep = np.ones(store.n_events, dtype=bool)
    keep[last] = False
    return store.select(keep), held


def outcome(
    world: World,
    arrays: Arrays,
    devices: Int64[np.ndarray, " devices"],
    held_out: Int32[np.ndarray, " devices"],
    target: int,
) -> Outcome:
    """Return what the model recommends to ``devices`` of ``world``, without what they had.

    Args:
        world: with the events that the devices know.
        arrays: the released model.
        devices: honest ones.
        held_out: the item that each wants; devices with none (-1), and those that have the target, do not count.
        target: the promoted item.
    """
    vectors = item_vectors(arrays, world.features)
    transformer, table = shared_transformer(arrays, world.shape), torch.as_tensor(vectors)
    counted, exposed, hits = 0, dict.fromkeys(CUTOFFS, 0), dict.fromkeys(CUTOFFS, 0)
    for begin in range(0, len(devices), _AT_ONCE):
        part = devices[begin : begin + _AT_ONCE]
        wanted = held_out[begin : begin + _AT_ONCE]
        scores = query_vectors(transformer, table, world.store, part, None) @ vectors.T
        had = holds(world.store, part)
        use = (wanted >= 0) & (wanted != target) & ~had[:, target]
        scores[had] = -np.inf
        # A model that was driven to infinity recommends nothing in particular.
        scores = np.where(np.isnan(scores), -np.inf, scores)[use]
        counted += int(use.sum())
        for k in CUTOFFS:
            top = np.argpartition(-scores, min(k, world.shape.n_items - 1), axis=1)[:, :k]
            exposed[k] += int((top == target).any(axis=1).sum())
            hits[k] += int((top == wanted[use][:, None]).any(axis=1).sum())
    return Outcome(devices=counted, exposed=exposed, hits=hits)


def _scaled(cohort: Cohort, staged: Staged, round: int, arrays: Arrays, device: int) -> dict[str, np.ndarray]:
    """Return what a malicious device sends that obeys nothing: one direction, as long as many updates.

    Its own update tells where queries point: away from the negatives. The target's row is pushed there, or where the
    table is not trained, all contexts towards the target's vector. The length is that of its update times devices /
    malicious devices (Bagdasaryan and others 2020, section 4.1).
    """
    update = cohort.collect(round, arrays, np.array([device]), clip_norm=None).arrays
    length = joint_norm(update) * cohort.store.n_users / staged.fakes
    sent = {name: np.zeros_like(array) for name, array in update.items()}
    if ITEM_ID in update:
        negatives = draw_negatives(cohort.seed, round, cohort.shape.n_items, cohort.local.negatives)
        sent[ITEM_ID][staged.target] = -update[ITEM_ID][negatives].mean(axis=0)
    elif _BIAS in update:
        vectors = item_vectors(arrays, cohort.features)
        sent[_BIAS][:] = vectors[staged.target] - vectors.mean(axis=0)
    else:
        sent = dict(update)
    factor = length / max(joint_norm(sent), 1e-12)
    return {name: array * factor for name, array in sent.items()}


def _robust(
    cohort: Cohort,
    staged: Staged,
    strategy: Strategy,
    how: Robust,
    round: int,
    arrays: Arrays,
    users: Int64[np.ndarray, " cohort"],
) -> dict[str, np.ndarray]:
    """Return the robust mean of some devices' updates times the cohort: at most 256, malicious ones in proportion."""
    bad, good = users[users >= staged.honest], users[users < staged.honest]
    share = min(1.0, _ROBUST_COHORT / max(1, len(users)))
    rng = public_rng(cohort.seed, "robust cohort", round)
    some = [rng.choice(part, math.ceil(share * len(part)), replace=False) for part in (good, bad)]
    updates = [cohort.collect(round, arrays, np.array([d]), clip_norm=None).arrays for d in some[0].tolist()]
    for device in some[1].tolist():
        if strategy == "scaled":
            updates.append(_scaled(cohort, staged, round, arrays, device))
        else:
            updates.append(cohort.collect(round, arrays, np.array([device]), clip_norm=None).arrays)
    return {name: array * (len(users) / len(updates)) for name, array in aggregate_all(updates, how).items()}
