"""The released model as something to evaluate: what every simulated device would search for, by itself."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64

from fedrecall.client.config import PersonalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.recall.retrieval import fresh_towers, query_vectors, shared_transformer, tune_towers
from fedrecall.client.training.cohort import Towers
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays
from fedrecall.simulations.config import RunConfig


def item_vectors(arrays: Mapping[str, np.ndarray], features: np.ndarray | None) -> Float32[np.ndarray, "items dim"]:
    """Return the item tower's vectors of the whole catalogue: id rows plus projected public features."""
    vectors = arrays[ITEM_ID].astype(np.float32)
    if features is not None:
        vectors = vectors + features @ arrays["item.features.weight"].T.astype(np.float32)
    return vectors


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelRecaller:
    """Scores the catalogue as the devices do: released vectors, own context, own tower tuned on own events.

    Attributes:
        name: in tables.
        arrays: released shared arrays.
        vectors: item vectors that devices hold, for encoding and for search: those of the released item table.
        shape: the model's shape.
        personal: local tuning of user towers; 0 steps for none.
        towers: towers that rounds trained, or ``None`` for fresh ones.
        seed: public seed of fresh towers and of the tuning's negatives.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    vectors: Float32[np.ndarray, "items dim"]
    shape: ModelShape
    personal: PersonalConfig
    towers: Towers | None
    seed: int

    def queries(self, users: Int64[np.ndarray, "batch"], context: EventStore) -> Float32[np.ndarray, "batch dim"]:
        """Return the query vectors of ``users``."""
        transformer = shared_transformer(self.arrays, self.shape)
        table = torch.as_tensor(self.vectors)
        towers = None
        if self.towers is not None or self.personal.steps:
            fresh = initial_arrays(self.shape, derive_seed(self.seed, "model"))
            index = torch.as_tensor(users)
            own = (
                fresh_towers(fresh, len(users))
                if self.towers is None
                else {n: t[index] for n, t in self.towers.items()}
            )
            towers = tune_towers(
                own,
                transformer,
                table,
                context,
                users,
                self.shape,
                self.personal,
                derive_seed(self.seed, "tower"),
            )
        return query_vectors(transformer, table, context, users, towers)

    def score(self, users: Int64[np.ndarray, "batch"], context: EventStore) -> Float32[np.ndarray, "batch items"]:
        """Score every item for ``users`` (see ``Recaller``)."""
        scores: Float32[np.ndarray, "batch items"] = self.queries(users, context) @ self.vectors.T
        return scores


def released(
    config: RunConfig, shape: ModelShape, arrays: Arrays, table: ItemTable, towers: Towers | None, *, name: str
) -> ModelRecaller:
    """Return a released model as devices use it: shared arrays, item table, and towers that rounds trained."""
    return ModelRecaller(
        name=name,
        arrays=arrays,
        vectors=table.vectors(),
        shape=shape,
        personal=config.personal,
        towers=towers,
        seed=config.seed,
    )
