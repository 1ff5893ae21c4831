"""The privacy plan as data: what is clipped, sampled and noised, how often, and against which neighbours.

The accountant (``fedrecall.privacy.accounting``) turns a plan into epsilons; the ledger charges it; the round
loop enforces it. A plan holds no data and is public.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fedrecall.protocol.errors import PlanError

Unit = Literal["user", "interaction"]
Trust = Literal["central", "local", "distributed"]
Sampling = Literal["everyone", "poisson"]
Adjacency = Literal["add_remove", "replace_one"]


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """A Gaussian mechanism on a clipped sum, used ``steps`` times.

    Attributes:
        name: what it releases, unique within its plan: ``popularity``, ``second_moments``, ``rounds``.
        sampling: ``everyone`` takes part, or each unit joins by an independent secret coin (``poisson``).
        sample_rate: the coin's probability; 1 for ``everyone``.
        noise_multiplier: standard deviation of the noise in the sum over ``clip_norm``; 0 means no noise.
        clip_norm: L2 bound of one sample's contribution; ``None`` means unbounded, allowed only without noise.
        steps: number of releases. Under unit ``interaction`` with trust ``local``: the most often that one device
            takes part.
        adjacency: ``add_remove`` moves the sum by ``clip_norm``, ``replace_one`` by twice that.
    """

    name: str
    sampling: Sampling = "everyone"
    sample_rate: float = 1.0
    noise_multiplier: float = 0.0
    clip_norm: float | None = None
    steps: int = 1
    adjacency: Adjacency = "add_remove"

    def __post_init__(self) -> None:
        """Refuse what cannot be accounted, naming the field and the remedy."""
        if self.sampling == "everyone" and self.sample_rate != 1.0:
            raise PlanError(f"{self.name}.sample_rate is {self.sample_rate}: with everyone taking part it is 1")
        if not 0.0 < self.sample_rate <= 1.0:
            raise PlanError(f"{self.name}.sample_rate is {self.sample_rate}: choose it above 0 and at most 1")
        if not 0.0 <= self.noise_multiplier < float("inf"):
            raise PlanError(f"{self.name}.noise_multiplier is {self.noise_multiplier}: choose a finite one >= 0")
        if self.clip_norm is not None and not 0.0 < self.clip_norm < float("inf"):
            raise PlanError(f"{self.name}.clip_norm is {self.clip_norm}: choose a finite one above 0")
        if self.noise_multiplier > 0.0 and self.clip_norm is None:
            raise PlanError(f"{self.name}.clip_norm is missing: noise protects nothing without a clip")
        if self.steps < 0:
            raise PlanError(f"{self.name}.steps is {self.steps}: choose 0 or more")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The privacy plan of one run: unit, trust model, delta and every mechanism that releases something.

    Attributes:
        unit: what one neighbour adds or removes: one ``user`` (device), or one ``interaction`` (event).
        trust: who adds the noise: the server (``central``), each device in full (``local``), or shares under
            secure aggregation (``distributed``).
        delta: the delta of every epsilon of this plan.
        devices: the public number of enrolled devices, from which expected cohorts are computed.
        mechanisms: everything that is released, in the order in which it is.
        simulated: the noise and coins come from a known seed, so that releases protect nobody in earnest.
    """

    unit: Unit
    trust: Trust
    delta: float
    devices: int
    mechanisms: tuple[Mechanism, ...]
    simulated: bool = True

    def __post_init__(self) -> None:
        """Refuse inconsistent plans."""
        if not 0.0 < self.delta < 1.0:
            raise PlanError(f"delta is {self.delta}: choose it between 0 and 1, usually below 1 / devices")
        if self.devices < 1:
            raise PlanError(f"devices is {self.devices}: a plan needs at least one")
        if self.trust == "distributed":
            raise PlanError("trust is 'distributed': secure aggregation has not landed; use 'central' or 'local'")
        names = [m.name for m in self.mechanisms]
        if len(set(names)) != len(names):
            raise PlanError(f"mechanism names {names} repeat: give each its own")

    def mechanism(self, name: str) -> Mechanism:
        """Return the mechanism called ``name``; raises PlanError when the plan has none."""
        for m in self.mechanisms:
            if m.name == name:
                return m
        raise PlanError(f"the plan has no mechanism {name!r}; it has {[m.name for m in self.mechanisms]}")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON data."""
        return asdict(self) | {"mechanisms": [asdict(m) for m in self.mechanisms]}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Plan":
        """Read back what ``to_dict`` wrote."""
        return Plan(**(data | {"mechanisms": tuple(Mechanism(**m) for m in data["mechanisms"])}))

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of the plan, in hex: its identity in ledgers and manifests."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()
