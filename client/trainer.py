"""The device path: one user's round on real Opacus, over a local item table.

The local table holds only the rows that the device's samples and the public negatives touch, so a step costs what
the history costs and not what the catalogue costs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedrecall.client.config import LocalConfig
from fedrecall.client.gate import let_out
from fedrecall.client.negatives import draw_negatives
from fedrecall.client.samples import Samples, block_samples, sample_tensors, user_samples
from fedrecall.client.store import EventStore
from fedrecall.models.recall import ITEM_ID, RecallModel
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.mechanisms import gaussian_sum
from fedrecall.privacy.noise import NoiseSource
from fedrecall.privacy.opacus_step import ClippedGradient
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.records import Arrays, Update

_ROWS = "rows.weight"
_UNBOUNDED = 1e30


class _LocalModel(nn.Module):
    """A recall model over a local item table, one loss a sample."""

    def __init__(self, shape: ModelShape, rows: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(rows, shape.dim)
        self.core = RecallModel(shape)

    def forward(
        self, places: Tensor, own_features: Tensor | None, negative_features: Tensor | None, **samples: Tensor
    ) -> Tensor:
        """Look up each sample's own rows, then its negatives, by place in the local table."""
        negatives = samples["masked"].shape[1]
        looked_up = self.rows(places)
        own, negative = looked_up[:, :-negatives], looked_up[:, -negatives:]
        loss: Tensor = self.core(own, negative, own_features, negative_features, **samples)
        return loss


@dataclass(frozen=True, kw_only=True, eq=False)
class Device:
    """What one device has: its events (a store of one user), its number for draws, its private user tower.

    ``tower`` holds the user tower's weights by name and is updated in place; empty means the identity.
    """

    store: EventStore
    key: int
    tower: dict[str, Tensor]


class Trainer:
    """Computes a device's update of one round. Wraps one local model and serves any number of rounds."""

    def __init__(
        self,
        *,
        shape: ModelShape,
        features: np.ndarray | None,
        local: LocalConfig,
        plan: Plan,
        trained: tuple[str, ...],
        seed: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Build the local model; the arguments are those of ``Cohort``, and the clip is the plan's."""
        self._shape, self._features, self._local, self._plan = shape, features, local, plan
        self._trained, self._seed, self._dtype = trained, seed, dtype
        self._mechanism = plan.mechanism("rounds")
        samples = local.blocks if plan.unit == "interaction" else 1
        own = shape.window + 1
        self._negatives = min(local.negatives, shape.n_items)
        self._places = torch.cat(
            [
                torch.arange(samples * own).view(samples, own),
                torch.arange(samples * own, samples * own + self._negatives).expand(samples, -1),
            ],
            dim=1,
        )
        self._model = _LocalModel(shape, samples * own + self._negatives).to(dtype)
        self._names = {name: _ROWS if name == ITEM_ID else f"core.{name}" for name in trained}
        self._parameters = dict(self._model.named_parameters())
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in self._names.values() or name.startswith("core.user."))
        clip_norm = self._mechanism.clip_norm or _UNBOUNDED
        self._step = ClippedGradient(self._model, list(self._names.values()), clip_norm)

    def update(self, round: int, arrays: Arrays, device: Device, noise: NoiseSource | None = None) -> Update:
        """Return the device's update of ``round`` at the released ``arrays``, after it passed the gate.

        ``noise`` is the device's own; PlanError where the plan's trust model is ``local`` and there is none.
        """
        negatives = draw_negatives(self._seed, round, self._shape.n_items, self._local.negatives)
        samples = self._samples(device, negatives, round)
        change = (
            self._gradient(arrays, device, samples, negatives)
            if self._local.steps == 1
            else self._local_training(arrays, device, samples, negatives)
        )
        clip_norm = self._mechanism.clip_norm
        if self._plan.trust == "local" and self._mechanism.noise_multiplier > 0:
            if noise is None:
                raise PlanError("trust is 'local' and the device has no noise: give update() a source of its own")
            change, clip_norm = gaussian_sum(change, self._mechanism, noise), None
        elif self._plan.unit == "interaction" and clip_norm is not None:
            clip_norm *= self._local.blocks
        schema = {n: (arrays[n].shape, np.dtype(arrays[n].dtype)) for n in self._trained}
        return let_out(change, schema=schema, round=round, clip_norm=clip_norm)

    def _samples(self, device: Device, negatives: np.ndarray, round: int) -> Samples:
        own = np.zeros(1, dtype=np.int64)
        if self._plan.unit == "interaction":
            return block_samples(
                device.store,
                own,
                blocks=self._local.blocks,
                window=self._shape.window,
                negatives=negatives,
                seed=self._seed,
            )
        return user_samples(
            device.store,
            own,
            np.array([device.key]),
            window=self._shape.window,
            negatives=negatives,
            seed=self._seed,
            round=round,
        )

    def _load(self, arrays: Arrays, device: Device, samples: Samples, negatives: np.ndarray) -> np.ndarray:
        """Fill the local model; return the catalogue item of each local row."""
        items = np.concatenate([samples.own.reshape(-1), negatives])
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                if name == _ROWS:
                    parameter.copy_(torch.as_tensor(arrays[ITEM_ID][items]))
                elif (bare := name.removeprefix("core.")).startswith("user."):
                    if bare in device.tower:
                        parameter.copy_(device.tower[bare])
                    elif bare.startswith("user.out."):
                        parameter.zero_()
                else:
                    parameter.copy_(torch.as_tensor(arrays[bare]))
        return items

    def _inputs(self, samples: Samples, negatives: np.ndarray) -> dict[str, Tensor | None]:
        batch = sample_tensors(samples, negatives, self._features, device=torch.device("cpu"), dtype=self._dtype)
        features = batch.pop("own_features", None), batch.pop("negative_features", None)
        shared = None if features[1] is None else features[1].expand(len(samples), -1, -1)
        del batch["own"], batch["negatives"]
        return {"places": self._places, "own_features": features[0], "negative_features": shared, **batch}

    def _gradient(
        self, arrays: Arrays, device: Device, samples: Samples, negatives: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return minus the sum of clipped per-sample gradients at the released weights."""
        items = self._load(arrays, device, samples, negatives)
        sums = self._step(self._inputs(samples, negatives))
        self._move_tower(device)
        return {n: self._dense(n, -sums[local].numpy(), items, arrays) for n, local in self._names.items()}

    def _local_training(
        self, arrays: Arrays, device: Device, samples: Samples, negatives: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the weight change of plain local SGD: free work, clipped once by the gate."""
        items = self._load(arrays, device, samples, negatives)
        before = {n: self._parameters[local].detach().clone() for n, local in self._names.items()}
        inputs = self._inputs(samples, negatives)
        for _ in range(self._local.steps):
            self._model.zero_grad(set_to_none=True)
            with self._step.plain():
                self._model(**inputs).sum().backward()
            with torch.no_grad():
                for local in self._names.values():
                    parameter = self._parameters[local]
                    if parameter.grad is not None:
                        parameter.sub_(self._local.learning_rate * parameter.grad)
            self._move_tower(device, reload=True)
        moved = {n: self._parameters[local].detach() - before[n] for n, local in self._names.items()}
        return {n: self._dense(n, change.numpy(), items, arrays) for n, change in moved.items()}

    def _move_tower(self, device: Device, *, reload: bool = False) -> None:
        """Take one plain gradient step on the device's private tower, where it trains in rounds."""
        if not device.tower:
            return
        with torch.no_grad():
            for name, weight in device.tower.items():
                parameter = self._parameters[f"core.{name}"]
                if parameter.grad is not None:
                    weight -= self._local.tower_learning_rate * parameter.grad
                if reload:
                    parameter.copy_(weight)

    @staticmethod
    def _dense(name: str, value: np.ndarray, items: np.ndarray, arrays: Arrays) -> np.ndarray:
        """Return ``value`` as the full array: local rows are scattered into a table of zeros."""
        if name != ITEM_ID:
            return value
        table = np.zeros(arrays[ITEM_ID].shape, dtype=value.dtype)
        np.add.at(table, items, value)
        return table
