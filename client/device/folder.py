"""A device's folder: its events, tower, ledger, and what it agreed to. All of a device's state is in here.

``answer`` is a device's whole part in a round: from the bytes of an ask to the bytes of an update. The tower and the
bytes that leave are written together, after the ledger was charged and before anything is sent: a kill leaves a ledger
that counts too much, never too little, and an ask that is repeated gets the identical bytes (docs/privacy.md, rule 8).
"""

import hashlib
import math
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedrecall.client.config import LocalConfig
from fedrecall.client.device.enrolment import ENROLMENT, EVENTS, LEDGER, MAX_STATE, SENT, STATE, check_private, enrolled
from fedrecall.client.device.home import PersonLedger, home_of, ledger_path
from fedrecall.client.events.database import EventDatabase
from fedrecall.client.events.store import EventStore
from fedrecall.client.gate import let_out_statistic
from fedrecall.client.training.start import codes_of, statistic_of
from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.models.recall import array_names, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.accounting.soundness import check_task
from fedrecall.privacy.ledger.chain import head_path
from fedrecall.privacy.ledger.device_ledger import Budget, DeviceLedger
from fedrecall.privacy.mechanisms.noise import NoiseSource, SecureNoise, SeededNoise
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.errors import CorruptArtefact, PlanError, UsageError
from fedrecall.protocol.files import check_room, read_bounded, write_atomic, write_json_atomic
from fedrecall.protocol.invitation import Invitation
from fedrecall.protocol.plan import ROUNDS
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import Arrays, Update
from fedrecall.protocol.statistics import Statistic
from fedrecall.protocol.task import Task
from fedrecall.protocol.tensors import pack, unpack

_LARGEST_WEIGHT = 1e6
"""Of a model, so that no arithmetic of a round overflows: what is larger has diverged, or is meant to."""
_MOST_ROUNDS = 1 << 32
_SLACK = 1 << 16
"""Bytes of a message besides its numbers."""
_ROOM = 1 << 21
"""Bytes of what is kept of an answer besides a model: the longest of the private start, and the ledger's lines."""
_ASKED = {"round", "mechanism", "clip_norm", "task"}


class DeviceFolder:
    """One enrolled device. Made by ``enrol``, opened anew for every ask."""

    def __init__(self, folder: Path) -> None:
        """Open the folder of an enrolled device.

        Raises:
            DataError: others may read the folder.
            UsageError: no device is enrolled in it.
            PlanError: the enrolment is for work that this version does not know.
            CorruptArtefact: a file was altered.
        """
        self.invitation, self.path = enrolled(folder), Path(folder).absolute()
        self.number, self.task = self.invitation.number, self.invitation.task
        self.shape, self._local = _work(self.task)
        self._failed = ""

    @classmethod
    def enrol(
        cls, folder: Path, invitation: Invitation, budget: Budget | None = None, *, replace: bool = False
    ) -> "DeviceFolder":
        """Put a device into ``folder``, which must exist and be its user's alone; repeating it changes nothing.

        The server's address and authorities, and where releases are, may change at any time. Another number, task or
        catalogue is another agreement, and takes ``replace``: the tower is then forgotten, the ledger never.

        Args:
            folder: of the device.
            invitation: what the device agrees to; it will answer asks for nothing else.
            budget: what its user allows it to spend; ``None`` keeps that of the ledger. Another one than the ledger's
                is recorded there, and holds from then on. In a home the budget is the home's.
            replace: whether to agree to something else than before.

        Raises:
            DataError: others may read the folder.
            UsageError: another agreement without ``replace``, or no budget for a first one.
            PlanError: the budget's unit is not that of ledger and plan, or the task asks for work that is not known.
            CorruptArtefact: there was a device and its ledger is gone, or a file was altered.
        """
        check_private(folder)
        _work(invitation.task)
        again = (folder / ENROLMENT).exists()
        changed = again and not _same(enrolled(folder), invitation)
        if changed and not replace:
            raise UsageError(
                f"{folder} agreed to another number, task or catalogue: keep to it, or say that it is to be replaced"
            )
        path, home = ledger_path(folder), home_of(folder)
        if home is not None and budget is not None:
            raise UsageError(f"{folder} lies in the home {home}, whose budget counts for all jobs: change it there")
        if home is not None and head_path(folder / LEDGER).exists():
            raise UsageError(f"{folder} has a ledger of its own: a device cannot be moved into a home")
        if again or head_path(path).exists():
            # Of a ledger that was begun, a missing file is missed.
            ledger = DeviceLedger.open(path)
            if budget is not None and budget != ledger.budget:
                ledger.change_budget(budget)
            if ledger.budget.unit != invitation.task.plan.unit and ledger.budget.epsilon is not None:
                raise PlanError(
                    f"the ledger's budget is for unit {ledger.budget.unit!r}, and nothing bounds a plan for unit "
                    f"{invitation.task.plan.unit!r} in it: every round would be refused; decline the invitation"
                )
        elif budget is None:
            raise UsageError("no budget: say which epsilon and delta this device may spend")
        else:
            DeviceLedger.resume(path, budget, simulated=invitation.task.plan.simulated)
        if changed:
            (folder / STATE).unlink(missing_ok=True)
        EventDatabase.create(folder / EVENTS).close()
        write_json_atomic(folder / ENROLMENT, invitation.to_dict(), mode=0o600)
        return cls(folder)

    def answer(self, data: bytes) -> bytes:
        """Return the update that an ask gets, as bytes. The same ask again gets the same bytes, uncharged.

        Raises:
            PlanError: an ask for another task or mechanism, or with other arrays than it takes.
            BudgetExhausted: the ledger refuses.
            CorruptArtefact: a file of the folder, or the ask itself, cannot be read.
        """
        asked = hashlib.sha256(data).hexdigest()
        tower, sent, answered = self._state()
        if sent is not None and answered == asked:
            return sent
        arrays, header = self._ask(data)
        # What is charged and then cannot be kept is never sent: on a full disk every ask would cost, for nothing.
        check_room(self.path, sum(weight.nbytes for weight in self._initial.values()) + _ROOM)
        update = self._trained(arrays, header, tower) if header["mechanism"] == ROUNDS else self._told(arrays, header)
        out = pack(update.arrays, {"round": update.round, "nonce": update.nonce})
        kept = {name: weight.numpy() for name, weight in tower.items()}
        kept[SENT] = np.frombuffer(out, dtype=np.uint8)
        write_atomic(self.path / STATE, pack(kept, {"asked": asked, "failed": self._failed}), mode=0o600)
        return out

    def history(self) -> EventStore:
        """Return the device's events as they are now; raises as ``EventDatabase`` does."""
        with EventDatabase(self.path / EVENTS) as database:
            return database.store(self.invitation.items, self.invitation.event_weights)

    def tower(self) -> dict[str, torch.Tensor]:
        """Return the private user tower as it is now: that of the rounds where they train it, else a fresh one."""
        return self._state()[0] or self._fresh_tower()

    def _ask(self, data: bytes) -> tuple[Arrays, dict[str, Any]]:
        """Decode an ask; refuse every one that is not for what this device agreed to."""
        bound = sum(4 * array.size for array in self.expected.values()) + _SLACK
        if len(data) > bound:
            raise PlanError(f"the ask has {len(data)} bytes, a model of this task at most {bound}: refused")
        arrays, header = unpack(data, what="the ask")
        if set(header) != _ASKED or header["task"] != self.task.digest():
            raise PlanError("the ask is not for the task that this device agreed to: enrol for the other one")
        return arrays, header

    def _trained(self, arrays: Arrays, header: dict[str, Any], tower: dict[str, torch.Tensor]) -> Update:
        """Return what a round gets, of exactly the arrays that the task's model has; moves ``tower``."""
        form = {name: (array.shape, array.dtype) for name, array in arrays.items()}
        if form != {name: (array.shape, array.dtype) for name, array in self.expected.items()}:
            raise PlanError("the ask's arrays are not those of the task's model: refused")
        if not all((np.abs(array) <= _LARGEST_WEIGHT).all() for array in arrays.values()):
            raise PlanError(f"the ask's arrays hold what is no number or above {_LARGEST_WEIGHT:g}: refused")
        round, clip_norm = header["round"], header["clip_norm"]
        bounded = clip_norm is None or (type(clip_norm) is float and 0.0 < clip_norm < math.inf)
        if type(round) is not int or not 0 <= round < _MOST_ROUNDS or not bounded:
            raise PlanError(f"the ask has round {round!r} and clip norm {clip_norm!r}: refused")
        device = Device(
            store=self._events(),
            key=self.number,
            tower=tower,
            ledger=PersonLedger(self.path, self.task.digest()),
            on_failed=self._note_failure,
        )
        trainer = Trainer(
            shape=self.shape,
            features=self.invitation.features,
            local=self._local,
            plan=self.task.plan,
            trained=self.task.trained,
            seed=self.task.seed,
        )
        return trainer.update(round, arrays, device, self._noise(round), clip_norm=clip_norm)

    def _told(self, arrays: Arrays, header: dict[str, Any]) -> Update:
        """Return what an ask of the private start gets."""
        plan, name = self.task.plan, header["mechanism"]
        if header["round"] != 0 or type(header["round"]) is not int or header["clip_norm"] is not None:
            raise PlanError("the ask's round or clip norm is not that of the start, 0 and none: refused")
        statistic = statistic_of(name, arrays, plan, self.shape.n_items)
        codes, ledger = self._codes(statistic), PersonLedger(self.path, self.task.digest())
        replayed = f"{derive_seed(self.task.seed, 'device', self.number, name, 0):032x}"
        return let_out_statistic(
            codes,
            statistic=statistic,
            round=0,
            charge=lambda nonce: ledger.charge(plan, name, 0, replayed if plan.simulated else nonce, datetime.now(UTC)),
        )

    def _events(self) -> EventStore:
        """Return the events for an answer; none where they cannot be read, which may depend on them (rule 16)."""
        try:
            return self.history()
        except Exception as error:
            self._note_failure(error)
            nothing = np.zeros(0, dtype=np.int64)
            types = tuple(self.invitation.event_weights)
            return EventStore.from_columns(
                users=nothing, items=nothing, n_users=1, n_items=self.shape.n_items, type_names=types
            )

    def _note_failure(self, error: Exception) -> None:
        """Keep the kind of what went wrong for the device's user; nothing of it may leave."""
        self._failed = type(error).__name__

    def _codes(self, statistic: Statistic) -> dict[str, np.ndarray]:
        """Return what the device tells of a statistic; zeros where working it out fails (rule 16)."""
        try:
            return codes_of(statistic, self._events())
        except Exception as error:
            self._note_failure(error)
            return {name: np.zeros(shape, dtype) for name, (shape, dtype) in statistic.schema.items()}

    @cached_property
    def _initial(self) -> dict[str, torch.Tensor]:
        return initial_arrays(self.shape, self.task.seed)

    @cached_property
    def expected(self) -> dict[str, np.ndarray]:
        """Arrays of the names and shapes that the task's model shares; their values mean nothing."""
        return {name: self._initial[name].numpy() for name in shared_names(self._initial)}

    def _fresh_tower(self) -> dict[str, torch.Tensor]:
        return {name: weight for name, weight in self._initial.items() if name.startswith("user.")}

    def _state(self) -> tuple[dict[str, torch.Tensor], bytes | None, str]:
        """Return the tower (empty where rounds do not train it), the bytes last sent, and the ask that they answer."""
        trained = self._fresh_tower() if self._local.tower_learning_rate > 0 else {}
        path = self.path / STATE
        if not path.exists():
            return trained, None, ""
        arrays, header = unpack(read_bounded(path, max_bytes=MAX_STATE), what=str(path))
        try:
            sent = arrays.pop(SENT).tobytes()
            return {name: torch.as_tensor(arrays[name]) for name in trained}, sent, str(header["asked"])
        except KeyError as error:
            raise CorruptArtefact(f"{path} lacks {error}: restore it, or forget this device") from error

    def _noise(self, round: int) -> NoiseSource:
        plan = self.task.plan
        if not plan.simulated:
            return SecureNoise()
        return SeededNoise(self.task.seed, plan.digest(), "device", self.number, round)


def task_of(plan: Any, shape: ModelShape, local: LocalConfig, trained: tuple[str, ...], seed: int) -> Task:
    """Return the task of devices that train a model of ``shape`` under ``plan``."""
    return Task(plan=plan, shape=asdict(shape), local=local.model_dump(), trained=trained, seed=seed)


def _work(task: Task) -> tuple[ModelShape, LocalConfig]:
    """Return a task's model and local work; raises PlanError for a task that is not sound or not known here."""
    check_task(task)
    try:
        shape, local = ModelShape(**task.shape), LocalConfig(**task.local)
    except (ValueError, TypeError) as error:
        raise PlanError(f"the task asks for work that this fedrecall does not know ({error}): update it") from error
    if unknown := sorted(set(task.trained) - set(array_names(shape))):
        raise PlanError(f"the task trains {unknown[:3]}, which its model does not have: update this fedrecall")
    return shape, local


def _same(agreed: Invitation, invitation: Invitation) -> bool:
    """Whether two invitations agree in all that rounds depend on, the order of items and event types included."""
    one, other = agreed.to_dict(), invitation.to_dict()
    kept = all(one[key] == other[key] for key in ("number", "task", "items", "event_weights", "features"))
    return kept and list(one["event_weights"]) == list(other["event_weights"])
