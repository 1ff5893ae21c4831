"""The device path: one user's round on real Opacus, over a local item table.

The local table holds only the rows that the device's samples and the public negatives touch, so a step costs what
the history costs and not what the catalogue costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.gate import let_out
from fedrecall.client.training.negatives import draw_negatives
from fedrecall.client.training.samples import Samples, block_samples, input_masks, sample_tensors, user_samples
from fedrecall.models.recall import ITEM_ID, RecallModel
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.mechanisms.adaptive_clip import within_clip
from fedrecall.privacy.mechanisms.mechanisms import clip_joint, gaussian_sum, joint_norm
from fedrecall.privacy.mechanisms.noise import NoiseSource, check_noise
from fedrecall.privacy.mechanisms.opacus_step import ClippedGradient
from fedrecall.protocol.allow_list import WITHIN_CLIP
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.randomness import derive_seed
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


class Ledger(Protocol):
    """What a device's participation is charged to (``DeviceLedger``)."""

    def charge(self, plan: Plan, mechanism: str, round: int, key: str, now: datetime) -> bool:
        """Record it durably, or raise BudgetExhausted."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Device:
    """What one device has.

    Attributes:
        store: its events (a store of one user).
        key: its number for draws.
        tower: weights of its private user tower by name, updated in place; empty means the identity.
        ledger: what it spent, charged before anything leaves; ``None`` in a simulation alone.
        clock: tells the time, with its zone.
        on_failed: told of work that failed, which is then as if the device had no events: noised, charged and sent;
            ``None``, for simulations, makes it an error.
    """

    store: EventStore
    key: int
    tower: dict[str, Tensor]
    ledger: Ledger | None = None
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    on_failed: Callable[[Exception], None] | None = None


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
        self._step = ClippedGradient(self._model, list(self._names.values()))

    def update(
        self,
        round: int,
        arrays: Arrays,
        device: Device,
        noise: NoiseSource | None = None,
        *,
        clip_norm: float | None = None,
    ) -> Update:
        """Return the device's update of ``round`` at the released ``arrays``, after it passed the gate.

        Args:
            round: the round.
            arrays: the release that the round starts from.
            device: charged in its ledger before anything leaves; its tower moves where it trains in rounds.
            noise: the device's own, for trust ``local``.
            clip_norm: of this round, where the plan's clip adapts; else the plan's.

        Raises:
            PlanError: noise or ledger are missing where the plan needs them.
            BudgetExhausted: the device's ledger refuses the round.
        """
        if clip_norm is None or self._mechanism.adaptive_clip is None:
            clip_norm = self._mechanism.clip_norm
        try:
            change, norm = self._work(round, arrays, device, clip_norm)
        except Exception as error:
            if device.on_failed is None:
                raise
            # Rule 16: that the work failed may depend on the events, and must not show.
            device.on_failed(error)
            change, norm = {name: np.zeros(arrays[name].shape) for name in self._trained}, 0.0
        # Samples are clipped one by one; the whole is bounded too, whatever was done before.
        bound = clip_norm
        if clip_norm is not None and self._plan.unit == "interaction":
            bound = clip_norm * self._local.blocks
        if self._plan.trust == "local" and self._mechanism.noise_multiplier > 0 and bound is not None:
            if noise is None:
                raise PlanError("trust is 'local' and the device has no noise: give update() a source of its own")
            check_noise(noise, self._plan)
            change, bound = gaussian_sum(clip_joint(change, bound)[0], self._mechanism, noise), None
        schema = {n: (arrays[n].shape, np.dtype(arrays[n].dtype)) for n in self._trained}
        if self._mechanism.adaptive_clip is not None and clip_norm is not None:
            change[WITHIN_CLIP] = within_clip(norm, clip_norm)
            schema[WITHIN_CLIP] = ((), np.dtype(np.float32))
        return let_out(
            change,
            schema=schema,
            round=round,
            clip_norm=bound,
            charge=lambda nonce: self._charge(device, round, nonce),
        )

    def _work(
        self, round: int, arrays: Arrays, device: Device, clip_norm: float | None
    ) -> tuple[dict[str, np.ndarray], float]:
        """Return what the device's events make of the round, its samples clipped, and the largest norm before."""
        negatives = draw_negatives(self._seed, round, self._shape.n_items, self._local.negatives)
        samples = self._samples(device, negatives, round)
        inputs = self._inputs(samples, negatives, self._kept(device, len(samples), round))
        items = self._load(arrays, device, samples, negatives)
        if self._local.steps == 1:
            return self._gradient(arrays, device, items, inputs, clip_norm)
        return self._local_training(arrays, device, items, inputs)

    def _charge(self, device: Device, round: int, nonce: str) -> None:
        """Charge the device's ledger; a simulated device may have none, since its events are nobody's secret."""
        if device.ledger is not None:
            replayed = f"{derive_seed(self._seed, 'device', device.key, round):032x}"
            key = replayed if self._plan.simulated else nonce
            device.ledger.charge(self._plan, self._mechanism.name, round, key, device.clock())
        elif not self._plan.simulated:
            raise PlanError("the plan is in earnest and the device has no ledger: open one, so that it can refuse")

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

    def _kept(self, device: Device, samples: int, round: int) -> np.ndarray | None:
        keys = np.array([device.key])
        return input_masks(keys, shape=self._shape, local=self._local, per_device=samples, seed=self._seed, round=round)

    def _inputs(self, samples: Samples, negatives: np.ndarray, kept: np.ndarray | None) -> dict[str, Tensor | None]:
        batch = sample_tensors(samples, negatives, self._features, kept, device=torch.device("cpu"), dtype=self._dtype)
        features = batch.pop("own_features", None), batch.pop("negative_features", None)
        shared = None if features[1] is None else features[1].expand(len(samples), -1, -1)
        del batch["own"], batch["negatives"]
        return {"places": self._places, "own_features": features[0], "negative_features": shared, **batch}

    def _gradient(
        self,
        arrays: Arrays,
        device: Device,
        items: np.ndarray,
        inputs: dict[str, Tensor | None],
        clip_norm: float | None,
    ) -> tuple[dict[str, np.ndarray], float]:
        """Return minus the sum of clipped per-sample gradients at the released weights, and the largest norm."""
        sums, norms = self._step(inputs, clip_norm or _UNBOUNDED)
        self._move_tower(device)
        change = {n: self._dense(n, -sums[local].numpy(), items, arrays) for n, local in self._names.items()}
        return change, float(norms.max())

    def _local_training(
        self, arrays: Arrays, device: Device, items: np.ndarray, inputs: dict[str, Tensor | None]
    ) -> tuple[dict[str, np.ndarray], float]:
        """Return the weight change of plain local SGD, free work that the gate clips once, and its norm."""
        before = {n: self._parameters[local].detach().clone() for n, local in self._names.items()}
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
        moved = {n: (self._parameters[local].detach() - before[n]).numpy() for n, local in self._names.items()}
        return {n: self._dense(n, change, items, arrays) for n, change in moved.items()}, joint_norm(moved)

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
