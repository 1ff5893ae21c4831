"""The leak probe: whether the way negatives are drawn tells which item comes next.

Several published federated recommenders draw training negatives from the items that are in neither
training, validation nor test: the test item is the one candidate that is never pushed down. A scorer that
learns nothing and only counts how often an item was drawn then ranks it first. Our sampler must leave that
scorer at chance.
"""

from typing import ClassVar, Protocol

import numpy as np
from jaxtyping import Float32, Int32, Int64

from fedrecall.client.events.store import EventStore
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.randomness import public_rng
from fedrecall.simulations.baselines.most_popular import MostPopular
from fedrecall.simulations.data.dataset import Catalogue
from fedrecall.simulations.data.splits import Split
from fedrecall.simulations.evaluation.evaluate import Progress, evaluate


class NegativeSampler(Protocol):
    """Whatever draws training negatives."""

    def draw(self, user: int, round: int, rng: np.random.Generator) -> Int32[np.ndarray, " drawn"]:
        """Return the items that push down the score of ``user`` in ``round``; ``rng`` is the user's own."""
        ...


class PublicNegatives:
    """Our training negatives: those of ``draw_negatives``, the same for all devices of a round.

    A device leaves out its own training events; it knows nothing of validation and test.
    """

    def __init__(self, train: EventStore, *, seed: int, count: int) -> None:
        self._train = train
        self._seed = seed
        self._count = count
        self._rounds: dict[int, Int32[np.ndarray, " drawn"]] = {}

    def draw(self, user: int, round: int, rng: np.random.Generator) -> Int32[np.ndarray, " drawn"]:
        """Return the round's public negatives that ``user`` does not have; ``rng`` is not used."""
        if round not in self._rounds:
            self._rounds[round] = draw_negatives(self._seed, round, self._train.n_items, self._count)
        owned = np.zeros(self._train.n_items, dtype=bool)
        owned[self._train.history(user)] = True
        drawn = self._rounds[round]
        kept: Int32[np.ndarray, " kept"] = drawn[~owned[drawn]]
        return kept


class DrawCounter:
    """A recaller that learns nothing: the less often an item was drawn for a user, the higher its score."""

    name: ClassVar[str] = "leak_probe"

    def __init__(self, sampler: NegativeSampler, *, rounds: int, seed: int) -> None:
        self._sampler = sampler
        self._rounds = rounds
        self._seed = seed

    def score(self, users: Int64[np.ndarray, " batch"], context: EventStore) -> Float32[np.ndarray, "batch items"]:
        """Return minus the number of draws of every item; of ``context`` only its catalogue's size counts."""
        scores = np.empty((len(users), context.n_items), dtype=np.float32)
        for row, user in enumerate(users):
            rng = public_rng(self._seed, "leak-probe", int(user))
            drawn = [self._sampler.draw(int(user), r, rng) for r in range(self._rounds)]
            scores[row] = -np.bincount(np.concatenate(drawn), minlength=context.n_items)
        return scores


def run_leak_probe(
    sampler: NegativeSampler,
    split: Split,
    rounds: int,
    *,
    catalogue: Catalogue,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, float | int | bool]:
    """Count draws over ``rounds`` rounds and rank the test items by them, beside a ranking by popularity.

    Returns:
        ``recall@10`` and ``ndcg@10`` of the probe, ``most_popular_recall@10``, ``chance_recall@10`` (of a
        random order), ``rounds``, ``users``, and ``leaks``: whether the probe, which knows nothing, does
        as well as popularity.

    """
    if rounds < 1:
        raise UsageError(f"rounds is {rounds}: the leak probe needs at least 1")
    probe = evaluate(
        DrawCounter(sampler, rounds=rounds, seed=seed),
        split,
        "test",
        catalogue=catalogue,
        ks=(10,),
        progress=progress,
    )
    popular = evaluate(MostPopular.fit(split.train), split, "test", catalogue=catalogue, ks=(10,))
    if split.test.candidates is None:
        ranked = np.array([len(catalogue) - len(np.unique(split.test_context.history(u))) for u in probe.users])
    else:
        ranked = np.full(len(probe.users), split.test.candidates.shape[1])
    recall, floor = probe.metrics["recall@10"], popular.metrics["recall@10"]
    return {
        "recall@10": recall,
        "ndcg@10": probe.metrics["ndcg@10"],
        "most_popular_recall@10": floor,
        "chance_recall@10": float(np.minimum(1.0, 10.0 / np.maximum(ranked, 1)).mean()),
        "rounds": rounds,
        "users": len(probe.users),
        "leaks": recall >= floor,
    }
