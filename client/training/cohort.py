"""The batched path: one round of thousands of simulated devices at once, the maths of ``trainer`` vectorised.

Every device gathers the item rows that it touches; ``torch.func`` takes the gradient of each sample; the clip and
the sum never build a dense table a device. The noise that many devices would add one by one is drawn once, as the
noise of their sum (same distribution: independent Gaussians add up).
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.client.training.samples import Samples, block_samples, input_masks, sample_tensors, user_samples
from fedrecall.models.recall import ITEM_ID, RecallModel, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.mechanisms.clipping import clip_factors
from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.plan import Unit
from fedrecall.protocol.records import CohortSum

_RUN = 64
"""Squares of so many numbers are added in the model's precision, all further ones in float64."""
_SINGLE = 1.0 - 2.0**-21
"""Takes off a clip in float32 what rounding, of a run's sum and of the products, could add to it."""

Towers = dict[str, Tensor]
"""Private user-tower weights by name, stacked over devices: [devices, ...]. Never part of an update."""

Rows = tuple[Tensor, Tensor]
"""Id-table rows of a sample's own items and of the negatives."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Part:
    """What one chunk adds: sums by name, row changes of the item table, user towers' gradients, samples within."""

    sums: dict[str, Tensor]
    rows: tuple[tuple[Tensor, Tensor], ...]
    tower: dict[str, Tensor]
    within: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Computes the clipped sum of any set of devices of one event store.

    Attributes:
        store: the events of all devices.
        shape: the model's shape.
        features: public item features [items, n_features], or ``None``.
        local: a device's work in a round.
        unit: of the plan; decides what a sample is.
        trained: names of the shared arrays that rounds train.
        seed: public seed of negatives and blocks, and of the devices' window draws.
        device: torch device.
        dtype: float32, or float64 for parity tests.
        chunk: samples computed at a time; bounds memory.
        workers: chunks computed at once, each on one thread. Sums are added in the order of the chunks, so that the
            number of workers changes nothing.
    """

    store: EventStore
    shape: ModelShape
    features: np.ndarray | None
    local: LocalConfig
    unit: Unit
    trained: tuple[str, ...]
    seed: int
    device: torch.device
    dtype: torch.dtype = torch.float32
    chunk: int = 128
    workers: int = 1

    def collect(
        self,
        round: int,
        arrays: Mapping[str, np.ndarray],
        users: np.ndarray,
        towers: Towers | None = None,
        *,
        clip_norm: float | None,
        count_within: bool = False,
    ) -> CohortSum:
        """Return the sum of the clipped contributions of ``users`` at the released ``arrays``.

        A contribution is minus the gradient for one local step, the weight change for many: where the model should
        go. With ``towers``, the user towers of these devices take part and are moved in place. ``clip_norm`` bounds a
        sample's contribution over all trained arrays together, ``None`` for no bound; ``count_within`` adds how many
        were within it, by halves (``fedrecall.privacy.mechanisms.adaptive_clip``).
        """
        negatives = draw_negatives(self.seed, round, self.shape.n_items, self.local.negatives)
        shared = {n: torch.as_tensor(a, dtype=self.dtype, device=self.device) for n, a in arrays.items()}
        total = {n: torch.zeros(shared[n].shape, dtype=torch.float64, device=self.device) for n in self.trained}
        # A quarter of a small cohort, so that its work too is for several threads, however many there are.
        size = max(1, min(self.chunk, -(-len(users) // 4)) // (self.local.blocks if self.unit == "interaction" else 1))
        chunks = [users[begin : begin + size] for begin in range(0, len(users), size)]

        def part(chunk: np.ndarray) -> _Part:
            samples = self._samples(chunk, negatives, round)
            kept = input_masks(
                chunk,
                shape=self.shape,
                local=self.local,
                per_device=len(samples) // len(chunk),
                seed=self.seed,
                round=round,
            )
            batch = sample_tensors(samples, negatives, self.features, kept, device=self.device, dtype=self.dtype)
            private = None
            if towers is not None:
                index = torch.as_tensor(chunk, device=self.device)
                private = {n: t[index] for n, t in towers.items()}
            model = self._models.get()
            try:
                if plain:
                    return self._unclipped(model, shared, batch)
                return self._clipped(model, shared, private, batch, clip_norm)
            finally:
                self._models.put(model)

        within = 0
        plain = clip_norm is None and self.local.steps == 1 and towers is None
        with ThreadPoolExecutor(self.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            # A few chunks ahead, not all: the memory of a round stays bounded.
            for begin in range(0, len(chunks), 4 * self.workers):
                some = chunks[begin : begin + 4 * self.workers]
                for chunk, done in zip(some, pool.map(part, some), strict=True):
                    for name, value in done.sums.items():
                        total[name] += value
                    for index, value in done.rows:
                        total[ITEM_ID].index_add_(0, index, value.to(torch.float64))
                    within += done.within
                    if towers is not None:
                        place = torch.as_tensor(chunk, device=self.device)
                        for name, change in done.tower.items():
                            towers[name][place] -= self.local.tower_learning_rate * change
        sums = {n: t.cpu().numpy() for n, t in total.items()}
        if count_within:
            sums[WITHIN_CLIP] = np.asarray(within - len(users) / 2, dtype=np.float64)
        return CohortSum(round=round, devices=len(users), arrays=sums)

    def _samples(self, users: np.ndarray, negatives: np.ndarray, round: int) -> Samples:
        """Build the round's samples of ``users``."""
        window = self.shape.window
        if self.unit == "interaction":
            blocks = self.local.blocks
            return block_samples(self.store, users, blocks=blocks, window=window, negatives=negatives, seed=self.seed)
        return user_samples(self.store, users, users, window=window, negatives=negatives, seed=self.seed, round=round)

    @cached_property
    def _models(self) -> "SimpleQueue[RecallModel]":
        """One shell of a model a worker: ``functional_call`` swaps weights in place, so threads cannot share one."""
        models: SimpleQueue[RecallModel] = SimpleQueue()
        for _ in range(self.workers):
            with torch.device("meta"):
                models.put(RecallModel(self.shape))
        return models

    @cached_property
    def _identity(self) -> dict[str, Tensor]:
        """A user tower that is the identity: its last layer is zero, the rest does not matter."""
        fresh = initial_arrays(self.shape, 0)
        return {n: t.to(self.device, self.dtype) for n, t in fresh.items() if n.startswith("user.")}

    def _clipped(
        self,
        model: RecallModel,
        shared: dict[str, Tensor],
        private: dict[str, Tensor] | None,
        batch: dict[str, Tensor],
        clip_norm: float | None,
    ) -> _Part:
        """Return the sum of the chunk's clipped contributions."""
        table = shared[ITEM_ID]
        train_rows, train_tower = ITEM_ID in self.trained, private is not None
        trained = {n: shared[n] for n in self.trained if n != ITEM_ID}
        frozen = {n: t for n, t in shared.items() if n != ITEM_ID and n not in trained}
        negative_features = batch.get("negative_features")
        data = {n: t for n, t in batch.items() if n not in ("own", "negatives", "negative_features")}

        def loss(weights: dict[str, Tensor], tower: dict[str, Tensor], rows: Rows, sample: dict[str, Tensor]) -> Tensor:
            one = {n: t[None] for n, t in sample.items()}
            positional = (rows[0][None], rows[1][None], one.pop("own_features", None), negative_features)
            value: Tensor = functional_call(model, {**frozen, **weights, **tower}, positional, one)
            return value[0]

        wanted = (0, *((1,) if train_tower else ()), *((2,) if train_rows else ()))

        def gradients(
            weights: dict[str, Tensor], tower: dict[str, Tensor], rows: Rows, sample: dict[str, Tensor]
        ) -> tuple[dict[str, Tensor], dict[str, Tensor], Rows | tuple[()]]:
            found = list(grad(loss, argnums=wanted)(weights, tower, rows, sample))
            by_weight = found.pop(0)
            return by_weight, found.pop(0) if train_tower else {}, found.pop(0) if train_rows else ()

        def contribution(
            tower: dict[str, Tensor], own: Tensor, sample: dict[str, Tensor]
        ) -> tuple[dict[str, Tensor], dict[str, Tensor], Rows | tuple[()]]:
            """Return the sum of the gradients along local SGD."""
            weights, rows = trained, (own, table[batch["negatives"]])
            total = gradients(weights, tower, rows, sample)
            rate, tower_rate = self.local.learning_rate, self.local.tower_learning_rate
            last = total
            for _ in range(self.local.steps - 1):
                weights = {n: weights[n] - rate * g for n, g in last[0].items()}
                tower = {n: tower[n] - tower_rate * g for n, g in last[1].items()} if train_tower else tower
                if last[2]:
                    rows = (rows[0] - rate * last[2][0], rows[1] - rate * last[2][1])
                last = gradients(weights, tower, rows, sample)
                total = tree_map(torch.add, total, last)
            return total

        change, tower, rows = vmap(contribution, in_dims=(0 if train_tower else None, 0, 0))(
            self._identity if private is None else private, table[batch["own"]], data
        )
        rate = self.local.learning_rate if self.local.steps > 1 else 1.0
        scale, within = self._scale([*change.values(), *rows], rate, clip_norm)
        scale = -rate * scale
        sums = {n: torch.tensordot(scale, value, dims=1) for n, value in change.items()}
        if not rows:
            return _Part(sums=sums, rows=(), tower=tower, within=within)
        own = (rows[0] * scale[:, None, None]).flatten(0, 1)
        negative = torch.tensordot(scale, rows[1], dims=1)
        row_changes = ((batch["own"].flatten(), own), (batch["negatives"], negative))
        return _Part(sums=sums, rows=row_changes, tower=tower, within=within)

    def _scale(self, parts: list[Tensor], rate: float, clip_norm: float | None) -> tuple[Tensor, int]:
        """Return the factor that clips each sample's gradients ``parts`` times ``rate``, and how many it leaves.

        Invalid ones become zero.
        """
        square = torch.stack([_squared_norms(p) for p in parts]).sum(dim=0)
        valid = torch.isfinite(square)
        if not bool(valid.all()):
            for part in parts:
                part[~valid] = 0.0
        if clip_norm is None:
            return torch.ones_like(square, dtype=self.dtype), 0
        norms = rate * square.sqrt()
        scale = clip_factors(norms, clip_norm) * (_SINGLE if self.dtype == torch.float32 else 1.0)
        return scale.to(self.dtype), int((valid & (norms <= clip_norm)).sum())

    def _unclipped(self, model: RecallModel, shared: dict[str, Tensor], batch: dict[str, Tensor]) -> _Part:
        """Return the sum of the chunk's unclipped gradients: one backward pass, negatives shared by all."""
        leaves = {n: shared[n].detach().requires_grad_() for n in self.trained if n != ITEM_ID}
        train_rows = ITEM_ID in self.trained
        own = shared[ITEM_ID][batch["own"]].requires_grad_(train_rows)
        negative = shared[ITEM_ID][batch["negatives"]].requires_grad_(train_rows)
        weights = {**{n: t for n, t in shared.items() if n != ITEM_ID}, **leaves, **self._identity}
        features = batch.get("own_features"), batch.get("negative_features")
        data = {n: t for n, t in batch.items() if n not in ("own", "negatives", "own_features", "negative_features")}
        losses = functional_call(model, weights, (own, negative[None], *features), data)
        wanted = [*leaves.values(), *((own, negative) if train_rows else ())]
        found = [-g for g in torch.autograd.grad(losses.sum(), wanted, materialize_grads=True)]
        sums = dict(zip(leaves, found, strict=False))
        if not train_rows:
            return _Part(sums=sums, rows=(), tower={}, within=0)
        rows = ((batch["own"].flatten(), found[-2].flatten(0, 1)), (batch["negatives"], found[-1]))
        return _Part(sums=sums, rows=rows, tower={}, within=0)


def _squared_norms(part: Tensor) -> Tensor:
    """Return the float64 squared norm of each sample of ``part`` [samples, ...], to a relative 2^-20 in float32."""
    flat = part.flatten(1)
    whole = flat.shape[1] // _RUN * _RUN
    runs = torch.linalg.vector_norm(flat[:, :whole].reshape(len(flat), -1, _RUN), dim=2)
    rest = torch.linalg.vector_norm(flat[:, whole:], dim=1, keepdim=True)
    return torch.cat([runs, rest], dim=1).to(torch.float64).square().sum(dim=1)
