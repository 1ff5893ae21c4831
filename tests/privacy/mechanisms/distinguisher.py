"""A white-box distinguisher of two histories, against the device's own code.

It plays the server of a plan with trust ``local``: it chooses the released arrays, sees every noised update of one
device, and knows both histories. It projects the updates of all rounds on the noiseless difference of the two, and
that is the best test there is: the projection is N(0, 1) for one history and N(mu, 1) for the other, with mu the
length of the difference over the standard deviation of the noise.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.stats import norm
from torch import Tensor

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.accounting.accounting import account
from fedrecall.privacy.accounting.gaussian import gaussian_mu
from fedrecall.privacy.audit import AuditResult
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.plan import Adjacency, Mechanism, Plan
from fedrecall.protocol.randomness import derive_seed, hashed_uniform

CLIP, SEED, DIM, ITEMS = 0.1, 3, 4, 400
LOUD = np.array([5.0, -5.0, 5.0, -5.0], dtype=np.float32)
"""A vector that survives the model's mean and normalisation, so that a context of it gives a query along it."""


def claim(plan: Plan) -> float:
    """Return the epsilon that the accountant claims against the server, which sees every update."""
    epsilon = next(row.epsilon for row in account(plan) if row.name == "server")
    assert epsilon is not None
    return epsilon


def plan_for(epsilon: float, *, rounds: int, adjacency: Adjacency = "replace_one") -> Plan:
    """Return a plan whose claim is ``epsilon`` to 1e-3: Gaussian releases, everyone taking part in all of them."""
    delta, shift = 1e-5, 2 if adjacency == "replace_one" else 1
    mechanism = Mechanism(
        name="rounds",
        noise_multiplier=shift * math.sqrt(rounds) / gaussian_mu(epsilon, delta),
        clip_norm=CLIP,
        steps=rounds,
        adjacency=adjacency,
    )
    return Plan(unit="interaction", trust="local", delta=delta, devices=1, mechanisms=(mechanism,))


def block_of_item(blocks: int) -> np.ndarray:
    return np.floor(hashed_uniform(derive_seed(SEED, "blocks"), np.arange(ITEMS)) * blocks).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Attack:
    """Two histories of one device that differ in one event, and the arrays that the server sends.

    Attributes:
        plan: what is claimed.
        window: events that the transformer reads.
        blocks: samples of a device.
        tower_rate: learning rate of an un-noised user tower in rounds; 0 leaves it alone.
        vectors: item -> vector in the released arrays; every other item has the zero vector.
        absent: items of the history, oldest first.
        present: the same with one more.
    """

    plan: Plan
    window: int
    blocks: int
    tower_rate: float = 0.0
    vectors: dict[int, np.ndarray]
    absent: list[int]
    present: list[int]

    @property
    def rounds(self) -> int:
        return self.plan.mechanism("rounds").steps

    def shift(self) -> float:
        """Return how far the two histories are apart, in clips, over all rounds."""
        difference = self._noiseless(self.present) - self._noiseless(self.absent)
        return float(np.linalg.norm(difference)) / CLIP

    def mu(self) -> float:
        """Return the exact mu of this pair of histories."""
        return self.shift() / self.plan.mechanism("rounds").noise_multiplier

    def scores(self, trials: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the projections of ``trials`` noised runs with and without the event, in standard deviations."""
        absent = self._noiseless(self.absent)
        direction = self._noiseless(self.present) - absent
        direction /= np.linalg.norm(direction) * CLIP * self.plan.mechanism("rounds").noise_multiplier
        trainer = self._trainer(self.plan)
        found = []
        for side, history in (("present", self.present), ("absent", self.absent)):
            runs = [self._run(trainer, history, (side, trial)) for trial in range(trials)]
            found.append(np.array([np.sum((run - absent) * direction) for run in runs]))
        return found[0], found[1]

    def _noiseless(self, history: list[int]) -> np.ndarray:
        mechanism = replace(self.plan.mechanism("rounds"), noise_multiplier=0.0)
        return self._run(self._trainer(replace(self.plan, mechanisms=(mechanism,))), history, None)

    def _run(self, trainer: Trainer, history: list[int], labels: tuple[str, int] | None) -> np.ndarray:
        """Return the updates [rounds, coordinates] of a fresh device."""
        arrays, tower = self._released
        store = EventStore.from_columns(
            users=np.zeros(len(history), dtype=np.int64), items=np.array(history), n_users=1, n_items=ITEMS
        )
        device = Device(store=store, key=0, tower={name: value.clone() for name, value in tower.items()})
        updates = []
        for round in range(self.rounds):
            noise = None if labels is None else SeededNoise(SEED, *labels, round)
            updates.append(trainer.update(round, arrays, device, noise=noise).arrays[ITEM_ID].ravel())
        return np.array(updates, dtype=np.float64)

    @cached_property
    def _released(self) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
        """Return the arrays that the server sends every round, and the tower that a device starts with."""
        fresh = initial_arrays(self._shape(), SEED)
        arrays = {name: value.numpy() for name, value in fresh.items() if not name.startswith("user.")}
        arrays[ITEM_ID] = np.zeros((ITEMS, DIM), dtype=np.float32)
        for item, vector in self.vectors.items():
            arrays[ITEM_ID][item] = vector
        return arrays, {name: value for name, value in fresh.items() if name.startswith("user.")}

    def _trainer(self, plan: Plan) -> Trainer:
        return Trainer(
            shape=self._shape(),
            features=None,
            local=LocalConfig(negatives=1, blocks=self.blocks, tower_learning_rate=self.tower_rate),
            plan=plan,
            trained=(ITEM_ID,),
            seed=SEED,
        )

    def _shape(self) -> ModelShape:
        return ModelShape(
            n_items=ITEMS,
            n_features=0,
            n_types=1,
            dim=DIM,
            window=self.window,
            blocks=1,
            heads=1,
            hidden=4,
            user_dim=1,
            user_hidden=2,
        )


def spare_items(rounds: int) -> np.ndarray:
    """Return the items that are no negatives of the first ``rounds`` rounds."""
    negatives = [draw_negatives(SEED, round, ITEMS, 1) for round in range(rounds)]
    return np.setdiff1d(np.arange(ITEMS), np.concatenate(negatives))


def best_threshold(mu: float, trials: int, delta: float) -> float:
    """Return where N(0, 1) against N(mu, 1) gives the highest Clopper-Pearson bound, before any score is seen."""
    cuts = np.arange(-1.0, mu + 3.0, 0.05)
    # About what an upper confidence bound adds to a rate, half an event included.
    false_positive = norm.sf(cuts) + 2 * np.sqrt(norm.sf(cuts) / trials) + 3.7 / trials
    false_negative = norm.cdf(cuts - mu) + 2 * np.sqrt(norm.cdf(cuts - mu) / trials) + 3.7 / trials
    return float(cuts[np.argmax(np.maximum(1 - false_negative - delta, 1e-9) / false_positive)])


def line(name: str, claimed: float, attack: Attack, result: AuditResult) -> str:
    """Return the figures of one finding, for whoever runs the tests with -s."""
    verdict = "BROKEN" if result.epsilon > claimed else "not refuted"
    return (
        f"{name}: claimed epsilon {claimed:.3f} at delta {result.delta:g}; lower bound {result.epsilon:.3f} "
        f"({result.confidence:.0%}, {result.trials} trials, {result.method}); exact mu of the pair {attack.mu():.3f}, "
        f"moved {attack.shift():.2f} clips over {attack.rounds} round(s): {verdict}"
    )
