"""What every engine must do: end where an oracle ends that takes one sample at a time, and hides nothing in masks."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.plan import AdaptiveClip, Mechanism, Plan
from fedrecall.protocol.randomness import derive_seed, hashed_uniform
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.server.config import ServerConfig
from fedrecall.server.training.rounds import Environment, run_rounds, start_state
from fedrecall.server.training.sampling import Sampler

Collect = Callable[[int, Arrays, np.ndarray, float | None], CohortSum | Iterable[Update]]
Towers = dict[str, Tensor]

HISTORIES = (
    [],
    [3],
    [4, 4],
    [0, 7],
    [5, 5, 5, 5, 5, 5, 5, 5],
    [1, 2, 3, 4, 5],
    [0, 1, 2, 3, 4, 5],
    [9, 8, 9, 8, 7, 10, 0, 0, 11, 2, 3, 9, 1],
)
"""Items of each device: none, one, two, repeated ones, as many as the window, one more, many more."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One plan and model of the contract."""

    unit: str = "user"
    steps: int = 1
    clip: float | None = None
    features: int = 3
    types: int = 2
    weights: bool = True
    times: bool = True
    towers: bool = False
    train: tuple[str, ...] = ("item.", "transformer.")
    trust: str = "central"
    sampling: str = "everyone"
    sample_rate: float = 1.0
    adaptive: AdaptiveClip | None = None
    negatives: int = 7
    blocks: int = 2
    dropout: float = 0.0
    histories: tuple[list[int], ...] = HISTORIES


CASES = {
    "user, one step": Case(),
    "user, one step, clipped": Case(clip=0.3),
    "user, one step, clipped, towers": Case(clip=0.3, towers=True),
    "user, many steps": Case(steps=3),
    "user, many steps, clipped": Case(steps=3, clip=0.02),
    "user, many steps, clipped, towers": Case(steps=3, clip=0.02, towers=True),
    "interaction": Case(unit="interaction", trust="local"),
    "interaction, clipped": Case(unit="interaction", trust="local", clip=0.1),
    "interaction, clipped, central": Case(unit="interaction", clip=0.1),
    "no features, types, weights or times": Case(clip=0.3, features=0, types=1, weights=False, times=False),
    "interaction without features": Case(unit="interaction", trust="local", clip=0.1, features=0),
    "transformer alone": Case(clip=0.3, train=("transformer.",)),
    "items alone, many steps": Case(clip=0.02, steps=2, train=("item.",)),
    "id table alone": Case(clip=0.3, train=(ITEM_ID,)),
    "Poisson cohorts": Case(clip=0.3, sampling="poisson", sample_rate=0.5),
    "cohorts of a fixed size": Case(clip=0.3, sampling="fixed_size", sample_rate=0.5),
    "cohorts in turn": Case(clip=0.3, sampling="limited", sample_rate=0.5),
    "adaptive clip": Case(clip=0.3, adaptive=AdaptiveClip(quantile=0.3, learning_rate=0.9)),
    "adaptive clip, many steps": Case(clip=0.3, steps=3, adaptive=AdaptiveClip(quantile=0.3, learning_rate=0.9)),
    "every item is a negative": Case(clip=0.3, negatives=40),
    "dropout": Case(clip=0.3, dropout=0.4),
    "dropout, no clip": Case(dropout=0.4),
    "dropout, many steps": Case(clip=0.02, steps=3, dropout=0.4),
    "dropout, interaction": Case(unit="interaction", trust="local", clip=0.1, dropout=0.4),
}
ROUNDS, SERVER_RATE, LOCAL_RATE, TOWER_RATE, SEED = 3, 0.7, 0.3, 0.2, 5


@dataclass(frozen=True, kw_only=True, eq=False)
class World:
    """Everything that an engine and the oracle read."""

    case: Case
    store: EventStore
    shape: ModelShape
    features: np.ndarray | None
    arrays: dict[str, np.ndarray]
    towers: Towers | None
    trained: tuple[str, ...]
    local: LocalConfig
    plan: Plan

    def fresh_towers(self) -> Towers | None:
        return None if self.towers is None else {n: t.clone() for n, t in self.towers.items()}


def make_world(case: Case) -> World:
    rng = np.random.default_rng(1)
    n_users, n_items = len(case.histories), 12
    users = np.repeat(np.arange(n_users), [len(h) for h in case.histories])
    # In order within each device; many at the same second, some a year apart.
    times = np.cumsum(rng.choice([0, 1, 2, 70, 4000, 10**8], len(users))) if case.times else None
    store = EventStore.from_columns(
        users=users,
        items=np.concatenate(case.histories).astype(np.int64),
        n_users=n_users,
        n_items=n_items,
        types=rng.integers(0, case.types, len(users)),
        times=times,
        # Sums of these are exact, so that float32 loss weights are the oracle's.
        weights=rng.choice([0.5, 1.0, 2.0], len(users)) if case.weights else None,
        type_names=("view", "buy")[: case.types],
    )
    shape = ModelShape(
        n_items=n_items,
        n_features=case.features,
        n_types=case.types,
        dim=4,
        window=5,
        blocks=case.blocks,
        heads=2,
        hidden=5,
        user_dim=2,
        user_hidden=3,
    )
    generator = torch.Generator().manual_seed(2)
    fresh = {
        name: value.double() + 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in initial_arrays(shape, 0).items()
    }
    names = shared_names(fresh)
    towers = {
        name: value + 0.1 * torch.randn(n_users, *value.shape, generator=generator, dtype=torch.float64)
        for name, value in fresh.items()
        if name.startswith("user.")
    }
    interaction = case.unit == "interaction"
    limited = {"participations": 2, "min_gap": 2, "adjacency": "zero_out"} if case.sampling == "limited" else {}
    replaced = interaction or case.sampling == "fixed_size"
    mechanism = Mechanism(
        name="rounds",
        sampling=case.sampling,
        sample_rate=case.sample_rate,
        clip_norm=case.clip,
        steps=ROUNDS,
        adaptive_clip=case.adaptive,
        **({"adjacency": "replace_one" if replaced else "add_remove"} | limited),
    )
    return World(
        case=case,
        store=store,
        shape=shape,
        features=rng.integers(0, 2, (n_items, case.features)).astype(np.float32) if case.features else None,
        arrays={name: fresh[name].numpy() for name in names},
        towers=towers if case.towers else None,
        trained=tuple(name for name in names if name.startswith(case.train)),
        local=LocalConfig(
            negatives=case.negatives,
            steps=case.steps,
            learning_rate=LOCAL_RATE,
            tower_learning_rate=TOWER_RATE if case.towers else 0.0,
            blocks=3,
            dropout=case.dropout,
        ),
        plan=Plan(
            unit="interaction" if interaction else "user",
            trust=case.trust,
            delta=1e-5,
            devices=n_users,
            mechanisms=(mechanism,),
        ),
    )


def coins(round: int) -> np.random.Generator:
    return np.random.default_rng([SEED, round])


def train(world: World, collect: Collect, folder: Path) -> dict[str, np.ndarray]:
    """Run the real round loop with plain SGD over one collector."""
    config = ServerConfig(optimiser="sgd", learning_rate=SERVER_RATE)
    mechanism = world.plan.mechanism("rounds")
    environment = Environment(
        collect=collect,
        sampler=Sampler.of(mechanism, world.plan.devices, coins),
        noise=lambda round: SeededNoise(SEED, round),
        key=str,
        samples=world.local.blocks if world.case.unit == "interaction" else 1,
    )
    state = start_state(config, world.arrays, world.trained, mechanism.clip_norm)
    ledger = Ledger.create(folder / "ledger.jsonl", world.plan)
    return dict(
        run_rounds(state, world.plan, environment, config=config, ledger=ledger, on_round=lambda _: None).arrays
    )


class EngineContract(ABC):
    """The tests that every engine inherits."""

    @abstractmethod
    def collector(self, world: World, towers: Towers | None) -> Collect:
        """Return the engine's collector; it moves ``towers`` in place."""

    @pytest.mark.parametrize("name", CASES)
    def test_the_oracle_ends_with_the_same_weights(self, name: str, tmp_path: Path) -> None:
        world = make_world(CASES[name])
        towers = world.fresh_towers()
        found = train(world, self.collector(world, towers), tmp_path)
        expected, expected_towers = oracle_training(name)
        for array in world.arrays:
            np.testing.assert_allclose(found[array], expected[array], rtol=0, atol=1e-8, err_msg=array)
            moved = np.abs(found[array] - world.arrays[array]).max()
            assert (moved > 1e-5) == (array in world.trained), array
        for tower in towers or {}:
            np.testing.assert_allclose(towers[tower], expected_towers[tower], rtol=0, atol=1e-8, err_msg=tower)
            assert (towers[tower] - world.towers[tower]).abs().max() > 1e-5


# The oracle. Dense tables, plain autograd on one sample at a time, no padding, no masks, no batches.


@cache
def oracle_training(name: str) -> tuple[dict[str, np.ndarray], Towers]:
    """Return the weights and towers after all rounds of a case."""
    world = make_world(CASES[name])
    towers = world.fresh_towers()
    weights = {n: torch.tensor(a) for n, a in world.arrays.items()}
    clip = world.case.clip
    for round in range(ROUNDS):
        released = {n: w.clone() for n, w in weights.items()}
        expected, within = world.case.sample_rate * world.store.n_users, 0.0
        for user in oracle_cohort(world, round):
            tower = None if towers is None else {n: t[user] for n, t in towers.items()}
            changes, norm = oracle_contribution(world, released, round, user, tower, clip)
            for name, change in changes.items():
                weights[name] += SERVER_RATE * change / expected
            within += 0.5 if clip is not None and norm <= clip else -0.5
        if world.case.adaptive is not None and clip is not None:
            share = within / expected + 0.5
            clip *= math.exp(-world.case.adaptive.learning_rate * (share - world.case.adaptive.quantile))
    return {n: w.numpy() for n, w in weights.items()}, towers or {}


def oracle_cohort(world: World, round: int) -> list[int]:
    """Return who takes part in a round."""
    everyone, half = list(range(world.store.n_users)), world.store.n_users // 2
    if world.case.sampling == "poisson":
        coin = coins(round).random(len(everyone))
        return [u for u in everyone if coin[u] < world.case.sample_rate]
    if world.case.sampling == "fixed_size":
        return coins(round).choice(len(everyone), half, replace=False).tolist()
    return everyone[round % 2 :: 2] if world.case.sampling == "limited" else everyone


def oracle_contribution(
    world: World, released: dict[str, Tensor], round: int, user: int, tower: Towers | None, clip: float | None
) -> tuple[dict[str, Tensor], float]:
    """Return one device's clipped contribution, and its last sample's norm; its ``tower`` moves in place."""
    total = {n: torch.zeros_like(released[n]) for n in world.trained}
    negatives = draw_negatives(SEED, round, world.shape.n_items, world.local.negatives)
    for number, events in enumerate(oracle_samples(world, round, user)):
        kept = oracle_dropout(world, round, user, number, len(events) - 1)
        local = {n: w.clone() for n, w in released.items()}
        for _ in range(world.case.steps):
            private = {} if tower is None else tower
            leaves = [w.requires_grad_() for w in ({n: local[n] for n in world.trained} | private).values()]
            loss = oracle_loss(world, {**local, **private}, events, negatives, kept)
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                for leaf, gradient, name in zip(leaves, gradients, [*world.trained, *private], strict=True):
                    leaf.requires_grad_(False)
                    rate = TOWER_RATE if name in private else LOCAL_RATE if world.case.steps > 1 else 1.0
                    leaf -= rate * gradient
        change = {n: local[n] - released[n] for n in world.trained}
        norm = math.sqrt(sum(float((c**2).sum()) for c in change.values()))
        factor = 1.0 if clip is None or not norm else min(1.0, clip / norm)
        for name in world.trained:
            total[name] += factor * change[name]
    return total, norm


def oracle_samples(world: World, round: int, user: int) -> list[list[int]]:
    """Return the events (rows of the store) of each of a device's samples."""
    begin, end = int(world.store.offsets[user]), int(world.store.offsets[user + 1])
    own, window = list(range(begin, end)), world.shape.window
    if world.case.unit == "interaction":
        blocks: list[list[int]] = [[] for _ in range(world.local.blocks)]
        for event in own:
            hashed = hashed_uniform(derive_seed(SEED, "blocks"), np.array([world.store.items[event]]))
            blocks[int(hashed[0] * world.local.blocks)].append(event)
        return [block[-(window + 1) :] for block in blocks]
    if len(own) <= window:
        return [own]
    drawn = hashed_uniform(derive_seed(SEED, "window", round), np.array([user]))[0]
    first = int(drawn * (len(own) - window))
    return [own[first : first + window + 1]]


def oracle_dropout(world: World, round: int, user: int, sample: int, length: int) -> list[Tensor]:
    """Return the factors of each event's input: a number of its own for each place, counted from the newest."""
    samples, window, dim = world.local.blocks if world.case.unit == "interaction" else 1, world.shape.window, 4
    factors = []
    for place in range(window - length, window):
        ids = [((user * samples + sample) * window + place) * dim + column for column in range(dim)]
        drawn = hashed_uniform(derive_seed(SEED, "dropout", round), np.array(ids))
        factors.append(torch.tensor([0.0 if d < world.case.dropout else 1 / (1 - world.case.dropout) for d in drawn]))
    return factors


def oracle_gaps(world: World, events: list[int]) -> list[int]:
    """Return for each event how often 1 + the seconds since the one before can be halved."""
    if world.store.times is None:
        return [0] * len(events)
    times = [int(world.store.times[e]) for e in events]
    return [0, *((1 + b - a).bit_length() - 1 for a, b in itertools.pairwise(times))]


def oracle_loss(
    world: World, weights: dict[str, Tensor], events: list[int], negatives: np.ndarray, kept: list[Tensor]
) -> Tensor:
    """Return the loss of one sample: every context from the events up to it, and nothing else."""
    if len(events) < 2:
        return sum(w.sum() for w in weights.values()) * 0.0
    shape, items = world.shape, [int(world.store.items[e]) for e in events]
    strength = np.array([world.store.weights[e] for e in events[1:]], dtype=np.float32)
    divisor = np.float32(shape.window) if world.case.unit == "interaction" else strength.sum(dtype=np.float32)

    def vector(item: int) -> Tensor:
        row = weights[ITEM_ID][item]
        if world.features is None:
            return row
        return row + weights["item.features.weight"] @ torch.tensor(world.features[item], dtype=torch.float64)

    vectors = [vector(item) for item in items]
    types = [int(world.store.types[e]) for e in events]
    others = [vector(int(n)) for n in negatives if int(n) not in items]
    loss = torch.zeros((), dtype=torch.float64)
    hidden = oracle_transformer(shape, weights, vectors[:-1], types[:-1], oracle_gaps(world, events), kept)
    for t in range(1, len(items)):
        query = oracle_recency(weights, vectors[:t]) + hidden[t - 1]
        if world.case.towers:
            inner = torch.cat([query, weights["user.vector.weight"][0]])
            inner = functional.gelu(weights["user.hidden.weight"] @ inner + weights["user.hidden.bias"])
            query = query + weights["user.out.weight"] @ inner + weights["user.out.bias"]
        right = torch.exp(query @ vectors[t])
        wrong = sum((torch.exp(query @ o) for o in others), torch.zeros((), dtype=torch.float64))
        wrong = wrong * (shape.n_items - 1) / max(1, len(others))
        loss = loss + float(strength[t - 1] / divisor) * (torch.log(right + wrong) - torch.log(right))
    return loss


def oracle_recency(weights: dict[str, Tensor], vectors: list[Tensor]) -> Tensor:
    newest_first = vectors[::-1]
    ages = torch.exp(weights["transformer.recency.age.weight"][:, 0])
    total = sum(ages[: len(vectors)]) + ages[-1]  # the last row is an event of nothing
    mean = sum(ages[a] / total * v for a, v in enumerate(newest_first))
    return weights["transformer.recency.project.weight"] @ mean + weights["transformer.recency.project.bias"]


def oracle_transformer(
    shape: ModelShape,
    weights: dict[str, Tensor],
    vectors: list[Tensor],
    types: list[int],
    gaps: list[int],
    kept: list[Tensor],
) -> list[Tensor]:
    def linear(name: str, x: Tensor) -> Tensor:
        return weights[f"transformer.{name}.weight"] @ x + weights[f"transformer.{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        scaled = (x - x.mean()) / torch.sqrt(x.var(correction=0) + 1e-5)
        return scaled * weights[f"transformer.{name}.weight"] + weights[f"transformer.{name}.bias"]

    state = []
    for place, (vector, kind) in enumerate(zip(vectors, types, strict=True)):
        position = weights["transformer.position.weight"][shape.window - len(vectors) + place]
        into = norm("norm_in", vector) + weights["transformer.event_type.weight"][kind] + position
        state.append((into + weights["transformer.gap.weight"][gaps[place]]) * kept[place])
    size = shape.dim // shape.heads
    for b in range(shape.blocks):
        parts = [linear(f"blocks.{b}.qkv", norm(f"blocks.{b}.norm_attention", x)).split(shape.dim) for x in state]
        mixed = []
        for t in range(len(state)):
            heads = []
            for h in range(0, shape.dim, size):
                q = parts[t][0][h : h + size]
                score = torch.stack([q @ parts[s][1][h : h + size] / math.sqrt(size) for s in range(t + 1)])
                share = torch.exp(score) / torch.exp(score).sum()
                heads.append(sum(share[s] * parts[s][2][h : h + size] for s in range(t + 1)))
            mixed.append(torch.cat(heads))
        state = [x + linear(f"blocks.{b}.mix", m) for x, m in zip(state, mixed, strict=True)]
        state = [
            x
            + linear(
                f"blocks.{b}.out", functional.gelu(linear(f"blocks.{b}.hidden", norm(f"blocks.{b}.norm_hidden", x)))
            )
            for x in state
        ]
    return [linear("out", norm("norm_out", x)) for x in state]
