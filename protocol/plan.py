"""The privacy plan as data: what is clipped, sampled and noised, how often, and against which neighbours.

The accountant (``fedrecall.privacy.accounting``) turns a plan into epsilons; the ledger charges it; the round loop
enforces it. A plan holds no data and is public. What cannot be accounted cannot be built.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from fedrecall.protocol.errors import PlanError

Unit = Literal["user", "interaction"]
Trust = Literal["central", "local", "distributed"]
Sampling = Literal["everyone", "poisson", "fixed_size", "limited"]
Adjacency = Literal["add_remove", "replace_one", "zero_out"]
Renewal = Literal["never", "day", "week", "month"]


ROUNDS = "rounds"
"""Name of a plan's training mechanism."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """A clip that follows a quantile of the devices' norms (Andrew and others 2021, algorithm 1).

    Every release then also holds the noised number of devices whose contribution was within the clip. Both
    parts are one Gaussian release of the mechanism's ``noise_multiplier``: the count gets ``share`` of its
    mu^2, the sum the rest, so that the count is charged with the sum.

    Attributes:
        quantile: share of contributions that the clip should leave whole.
        learning_rate: of the clip's logarithm, a round.
        share: of mu^2, for the count.
    """

    quantile: float = 0.5
    learning_rate: float = 0.2
    share: float = 0.05

    def __post_init__(self) -> None:
        """Refuse settings out of bounds."""
        for name in ("quantile", "share"):
            _require(0.0 < getattr(self, name) < 1.0, f"adaptive_clip.{name}", getattr(self, name), "between 0 and 1")
        ok = 0.0 < self.learning_rate <= 1.0
        _require(ok, "adaptive_clip.learning_rate", self.learning_rate, "above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """A Gaussian mechanism on a clipped sum, used ``steps`` times.

    Attributes:
        name: what it releases, unique within its plan: ``popularity``, ``second_moments``, ``rounds``.
        sampling: ``everyone`` takes part; each device joins by an independent secret coin (``poisson``); a secret
            uniform subset of fixed size joins (``fixed_size``); or devices join in turn, each at most
            ``participations`` times and at least ``min_gap`` rounds apart (``limited``), which needs no secret.
        sample_rate: expected share of the devices in a release: the coin's probability, the subset's share, one over
            the turns of ``limited``; 1 for ``everyone``.
        noise_multiplier: standard deviation of the noise in the sum over ``clip_norm``; 0 means no noise. Of the
            independent noise that is correlated where ``bands`` is above 1; of sum and count together where the clip
            adapts.
        clip_norm: L2 bound of one sample's contribution, the first one where the clip adapts; ``None`` means
            unbounded, allowed only without noise.
        steps: number of releases. Under unit ``interaction`` with trust ``local``: the most often that one device
            takes part.
        adjacency: ``add_remove`` moves the sum by ``clip_norm``, ``replace_one`` by twice that, ``zero_out`` (a
            device's contributions become zero, its presence stays known) by ``clip_norm``.
        participations: ``limited`` alone: the most often that one device takes part.
        min_gap: ``limited`` alone: a device's rounds lie at least this far apart.
        bands: ``limited`` alone: a round's noise mixes that of so many rounds
            (``fedrecall.privacy.mechanisms.correlated``); 1 is independent noise.
        min_survivors: fewer contributions make a release void; 0 for no such bound.
        adaptive_clip: lets the clip follow a private quantile; ``None`` for a fixed clip.
    """

    name: str
    sampling: Sampling = "everyone"
    sample_rate: float = 1.0
    noise_multiplier: float = 0.0
    clip_norm: float | None = None
    steps: int = 1
    adjacency: Adjacency = "add_remove"
    participations: int | None = None
    min_gap: int | None = None
    bands: int = 1
    min_survivors: int = 0
    adaptive_clip: AdaptiveClip | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be accounted, naming the field and the remedy."""
        here = self.name
        _require(isinstance(here, str) and bool(here), "a mechanism's name", here, "a text")
        _one_of(f"{here}.sampling", self.sampling, Sampling)
        _one_of(f"{here}.adjacency", self.adjacency, Adjacency)
        _require(0.0 < self.sample_rate <= 1.0, f"{here}.sample_rate", self.sample_rate, "above 0 and at most 1")
        if self.sampling == "everyone" and self.sample_rate != 1.0:
            raise PlanError(f"{here}.sample_rate is {self.sample_rate}: with everyone taking part it is 1")
        finite = 0.0 <= self.noise_multiplier < math.inf
        _require(finite, f"{here}.noise_multiplier", self.noise_multiplier, "finite and at least 0")
        if self.clip_norm is not None:
            _require(0.0 < self.clip_norm < math.inf, f"{here}.clip_norm", self.clip_norm, "finite and above 0")
        if self.noise_multiplier > 0.0 and self.clip_norm is None:
            raise PlanError(f"{here}.clip_norm is missing: noise protects nothing without a clip")
        for name, least in (("steps", 0), ("bands", 1), ("min_survivors", 0)):
            _require(_whole(getattr(self, name), least), f"{here}.{name}", getattr(self, name), f"whole, from {least}")
        self._check_sampling()
        if self.adaptive_clip is not None and self.clip_norm is None:
            raise PlanError(f"{here}.clip_norm is missing: an adaptive clip starts from one")
        if self.adaptive_clip is not None and self.bands > 1:
            raise PlanError(f"{here}.adaptive_clip needs bands 1: correlated noise needs a fixed clip (rule 14)")

    def _check_sampling(self) -> None:
        here, limited = self.name, self.sampling == "limited"
        for name in ("participations", "min_gap"):
            value = getattr(self, name)
            if limited and not _whole(value, 1):
                raise PlanError(f"{here}.{name} is {value}: limited participation needs a whole number from 1")
            if not limited and value is not None:
                raise PlanError(f"{here}.{name} is {value}: it belongs to sampling 'limited'; leave it out")
        if not limited and self.bands > 1:
            raise PlanError(f"{here}.bands is {self.bands}: correlated noise needs sampling 'limited'; make it 1")
        if self.sampling == "fixed_size" and self.adjacency != "replace_one":
            raise PlanError(
                f"{here}.adjacency is {self.adjacency!r}: the size of a fixed-size cohort's population is public, so "
                "neighbours replace one device; make it 'replace_one'"
            )
        if self.adjacency == "zero_out" and not limited:
            raise PlanError(f"{here}.adjacency is 'zero_out': it belongs to sampling 'limited'; make it 'add_remove'")
        if not limited:
            return
        if self.adjacency != "zero_out":
            raise PlanError(
                f"{here}.adjacency is {self.adjacency!r}: limited participation is accounted for 'zero_out'"
            )
        gap, most, turns = int(self.min_gap or 0), int(self.participations or 0), self.turns
        if not math.isclose(self.sample_rate * turns, 1.0, rel_tol=1e-9):
            raise PlanError(f"{here}.sample_rate is {self.sample_rate}: make it one over a whole number of turns")
        if turns < gap or -(-self.steps // turns) > most:
            raise PlanError(
                f"{here}.sample_rate is {self.sample_rate}: devices would join every {turns} rounds of {self.steps}, "
                f"not at most {most} times at least {gap} rounds apart; lower it"
            )

    @property
    def turns(self) -> int:
        """Over how many rounds a ``limited`` cohort passes before a device's turn comes again."""
        return round(1.0 / self.sample_rate)

    @property
    def sum_noise_multiplier(self) -> float:
        """Noise of the sum alone over the clip: above ``noise_multiplier`` where a count takes its share."""
        return self.noise_multiplier / math.sqrt(1.0 - self.adaptive_clip.share if self.adaptive_clip else 1.0)

    @property
    def count_noise_multiplier(self) -> float:
        """Noise of the count within the clip over its sensitivity of 1/2; 0 where the clip is fixed."""
        return self.noise_multiplier / math.sqrt(self.adaptive_clip.share) if self.adaptive_clip else 0.0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The privacy plan of one run: unit, trust model, delta and every mechanism that releases something.

    Attributes:
        unit: what one neighbour adds or removes: one ``user`` (device), or one ``interaction`` (event).
        trust: who adds the noise: the server (``central``), each device in full (``local``), or shares under
            secure aggregation (``distributed``: accounted, and refused at run time until it lands).
        delta: the delta of every epsilon of this plan.
        devices: the public number of enrolled devices, from which expected cohorts are computed.
        mechanisms: everything that is released, in the order in which it is.
        simulated: the noise and coins come from a known seed, so that releases protect nobody in earnest.
        colluders: ``distributed`` alone: survivors whose noise shares the server may know.
        renews: how often ``steps`` start again (UTC calendar); every epsilon is then for one window.
    """

    unit: Unit
    trust: Trust
    delta: float
    devices: int
    mechanisms: tuple[Mechanism, ...]
    simulated: bool = True
    colluders: int = 0
    renews: Renewal = "never"

    def __post_init__(self) -> None:
        """Refuse inconsistent plans."""
        _one_of("unit", self.unit, Unit)
        _one_of("trust", self.trust, Trust)
        _one_of("renews", self.renews, Renewal)
        if not 0.0 < self.delta < 1.0:
            raise PlanError(f"delta is {self.delta}: choose it between 0 and 1, usually below 1 / devices")
        if not _whole(self.devices, 1):
            raise PlanError(f"devices is {self.devices}: a plan needs at least one")
        _require(_whole(self.colluders, 0), "colluders", self.colluders, "whole, from 0")
        _require(type(self.simulated) is bool, "simulated", self.simulated, "true or false")
        names = [m.name for m in self.mechanisms]
        if len(set(names)) != len(names):
            raise PlanError(f"mechanism names {names} repeat: give each its own")
        for mechanism in self.mechanisms:
            self._check_mechanism(mechanism)
        self._check_relation()

    def _check_mechanism(self, m: Mechanism) -> None:
        if m.sampling == "fixed_size" and not math.isclose(m.sample_rate * self.devices, self.cohort_size(m)):
            raise PlanError(f"{m.name}.sample_rate is {m.sample_rate}: no whole cohort of {self.devices} devices")
        if m.sampling in ("fixed_size", "limited") and (self.unit, self.trust) == ("interaction", "local"):
            raise PlanError(f"{m.name}.sampling is {m.sampling!r}: steps already bound a device's rounds; 'everyone'")
        if m.sampling in ("fixed_size", "limited") and self.unit == "interaction":
            raise PlanError(f"{m.name}.sampling is {m.sampling!r}: it is accounted for unit 'user' alone; 'everyone'")
        if m.sampling == "limited" and self.trust != "central":
            raise PlanError(f"{m.name}.sampling is 'limited': trust {self.trust!r} has no correlated noise; 'central'")
        if m.sampling == "limited" and self.renews != "never":
            raise PlanError(f"renews is {self.renews!r}: limited participation has one fixed horizon; make it 'never'")
        if m.adaptive_clip is not None and (self.unit, self.trust) != ("user", "central"):
            raise PlanError(f"{m.name}.adaptive_clip needs unit 'user' and trust 'central': use a fixed clip_norm")
        if m.min_survivors and self.trust == "central" and m.sampling in ("poisson", "fixed_size"):
            raise PlanError(
                f"{m.name}.min_survivors is {m.min_survivors}: a void round would tell who took part and undo the "
                "amplification by sampling; make it 0, or let everyone or a limited cohort take part"
            )
        if self.trust == "distributed":
            if m.steps and m.noise_multiplier > 0 and m.min_survivors <= self.colluders:
                raise PlanError(
                    f"{m.name}.min_survivors is {m.min_survivors}: noise shares are sized for the survivors beyond "
                    f"the {self.colluders} colluders; choose more"
                )
        elif self.colluders:
            raise PlanError(f"colluders is {self.colluders}: it belongs to trust 'distributed'; make it 0")
        if m.min_survivors > self.devices:
            raise PlanError(f"{m.name}.min_survivors is {m.min_survivors}: there are {self.devices} devices")

    def _check_relation(self) -> None:
        """Under unit ``user`` a plan has one neighbouring relation; ``zero_out`` and ``add_remove`` move sums alike."""
        if self.unit != "user" or self.trust == "local":
            return
        replacing = {m.name: m.adjacency == "replace_one" for m in self.mechanisms if m.steps}
        if len(set(replacing.values())) > 1:
            bad = [name for name, replaces in replacing.items() if not replaces]
            raise PlanError(f"adjacency of {', '.join(bad)} must be 'replace_one' too: a plan has one relation")
        kinds = {m.sampling for m in self.mechanisms if m.steps}
        if {"fixed_size", "poisson"} <= kinds:
            raise PlanError("sampling 'fixed_size' beside 'poisson' has no accountant: use one of them")

    def cohort_size(self, mechanism: Mechanism) -> int:
        """Return the expected number of devices in one release, rounded."""
        return round(mechanism.sample_rate * self.devices)

    def mechanism(self, name: str) -> Mechanism:
        """Return the mechanism called ``name``; raises PlanError when the plan has none."""
        for m in self.mechanisms:
            if m.name == name:
                return m
        raise PlanError(f"the plan has no mechanism {name!r}; it has {[m.name for m in self.mechanisms]}")

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain JSON data."""
        mechanisms = [asdict(m) for m in self.mechanisms]
        for m in mechanisms:  # equal plans have equal digests: 1 is 1.0
            m |= {k: float(m[k]) for k in ("sample_rate", "noise_multiplier", "clip_norm") if m[k] is not None}
        return asdict(self) | {"delta": float(self.delta), "mechanisms": mechanisms}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "Plan":
        """Read back what ``to_dict`` wrote; raises PlanError for what is no plan."""
        try:
            mechanisms = []
            for m in data["mechanisms"]:
                clip = m.get("adaptive_clip")
                mechanisms.append(Mechanism(**(m | {"adaptive_clip": AdaptiveClip(**clip) if clip else None})))
            return Plan(**(data | {"mechanisms": tuple(mechanisms)}))
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise PlanError(f"this is no privacy plan ({error}): read one that to_dict wrote") from error

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of the plan, in hex: its identity in ledgers and manifests."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _require(ok: bool, name: str, value: object, bound: str) -> None:
    if not ok:
        raise PlanError(f"{name} is {value}: choose it {bound}")


def _one_of(name: str, value: object, kinds: Any) -> None:
    if value not in get_args(kinds):
        raise PlanError(f"{name} is {value!r}: choose one of {', '.join(get_args(kinds))}")
