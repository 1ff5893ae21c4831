"""What devices are asked to do in every round of one plan: public, the same for all, agreed to at enrolment."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Plan


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """The work that a device agreed to: it answers asks for this task and for no other.

    Attributes:
        plan: the privacy plan.
        shape: public sizes of the model, by name.
        local: a device's work in a round, by name.
        trained: names of the shared arrays that rounds train.
        seed: public seed of negatives, blocks and window draws.
    """

    plan: Plan
    shape: Mapping[str, int]
    local: Mapping[str, Any]
    trained: tuple[str, ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the task as plain JSON data."""
        return {
            "plan": self.plan.to_dict(),
            "shape": dict(self.shape),
            "local": dict(self.local),
            "trained": list(self.trained),
            "seed": self.seed,
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Task":
        """Read back what ``to_dict`` wrote; raises PlanError for what is no task."""
        try:
            if set(data) != {"plan", "shape", "local", "trained", "seed"}:
                raise TypeError(f"its keys are {sorted(data)}")
            return Task(
                plan=Plan.from_dict(data["plan"]),
                shape=dict(data["shape"]),
                local=dict(data["local"]),
                trained=tuple(map(str, data["trained"])),
                seed=int(data["seed"]),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"this is no task ({error}): read one that to_dict wrote") from error

    def digest(self) -> str:
        """Return the SHA-256 of the task's canonical JSON, plan included: what every ask names."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
