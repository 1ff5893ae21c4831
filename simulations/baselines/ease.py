"""EASE (Steck 2019): a linear item-item model in closed form, here also with histories weighted by age."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional

from fedrecall.client.events.store import EventStore
from fedrecall.protocol.errors import ConfigError
from fedrecall.simulations.baselines.histories import (
    Cooccurrence,
    count_cooccurrence,
    fill_empty,
    weighted_histories,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ease:
    """Scores by ``history @ weights``, where an event of age a counts ``decay ** a``; 1 is Steck's model.

    Attributes:
        items: the items that the model knows; all others score 0.
        weights: item-item weights with a zero diagonal.
        owners: popularity, which scores for a history without any known item.
        decay: weight of an event against the next one, in (0, 1].

    """

    items: Int64[np.ndarray, " known"]
    weights: Float[Tensor, "known known"]
    owners: Int64[np.ndarray, " items"]
    decay: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a decay that makes old events count more."""
        if not 0.0 < self.decay <= 1.0:
            raise ConfigError(f"ease: decay is {self.decay}: choose it above 0 and at most 1")

    @property
    def name(self) -> str:
        """``ease``, or ``ease_weighted`` where age counts."""
        return "ease" if self.decay == 1.0 else "ease_weighted"

    @classmethod
    def fit(cls, train: EventStore, *, regularisation: float, decay: float = 1.0) -> "Ease":
        """Solve for the weights with the L2 penalty ``regularisation`` (lambda): cubic in known items."""
        return cls.from_cooccurrence(count_cooccurrence(train), regularisation=regularisation, decay=decay)

    @classmethod
    def from_cooccurrence(cls, together: Cooccurrence, *, regularisation: float, decay: float = 1.0) -> "Ease":
        """Do as ``fit``, from statistics that several settings share.

        Steck 2019, equation 8: with P = (X'X + lambda I)^-1, weights are -P_ij / P_jj off the diagonal.
        """
        if not 0.0 < regularisation < float("inf"):
            raise ConfigError(f"ease: regularisation is {regularisation}: choose a finite one above 0")
        gram = torch.from_numpy(together.counts).clone()
        gram.diagonal().add_(regularisation)
        # The inverse comes back column by column; it is symmetric, so its transpose is the same row by row.
        weights = torch.cholesky_inverse(torch.linalg.cholesky(gram, out=gram)).mT
        weights.div_(-weights.diagonal().clone())
        weights.fill_diagonal_(0.0)
        return cls(items=together.items, weights=weights, owners=together.owners, decay=decay)

    def score(self, users: Int64[np.ndarray, " batch"], context: EventStore) -> Float32[np.ndarray, "batch items"]:
        """Score every item from each history's known items."""
        histories = weighted_histories(users, context, self.decay)[:, self.items]
        scores = np.zeros((len(users), len(self.owners)), dtype=np.float32)
        # Sums rows of the weights: unlike a matrix product, exactly the same in every batch.
        sums = functional.embedding_bag(
            torch.from_numpy(histories.indices.astype(np.int64)),
            self.weights,
            torch.from_numpy(histories.indptr.astype(np.int64)),
            mode="sum",
            per_sample_weights=torch.from_numpy(histories.data),
            include_last_offset=True,
        )
        scores[:, self.items] = sums.numpy()
        fill_empty(scores, histories, self.owners)
        return scores
