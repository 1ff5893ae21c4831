"""From a plan to epsilons, one row for each adversary (docs/privacy.md).

In a plan ``noise_multiplier`` is std / clip_norm, and ``replace_one`` moves a clipped sum by twice the clip.

Choices on the safe side. Only unit ``user`` under trust ``central`` is ever amplified by sampling: under unit
``interaction`` a device's other samples show that it took part, and under ``distributed`` void rounds and colluding
devices tell. Unit ``user`` under trust ``local`` always counts as ``replace_one``: the server knows that a device is
there, so any two histories are neighbours. Under ``distributed`` the noise is what the honest survivors add at least.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from fedrecall.privacy.accounting.composition import (
    COARSE,
    FINE,
    Composition,
    closed_form_epsilon,
    compose,
    epsilon_of,
    rdp_epsilon,
    shift_of,
    single_sensitivity,
)
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import Adjacency, Mechanism, Plan

Adversary = Literal["released-model", "server", "network", "device-thief"]
ADVERSARIES: tuple[Adversary, ...] = get_args(Adversary)
_CURVE_POINTS = 40


@dataclass(frozen=True, kw_only=True)
class AdversaryEpsilon:
    """One row of a privacy report.

    Attributes:
        name: the adversary.
        epsilon: at ``delta``, for one ``unit``; ``None`` when nothing bounds it.
        delta: the plan's.
        unit: what neighbours differ in: one ``user`` or one ``interaction``.
        adjacency: ``add_remove``, ``replace_one``, ``zero_out``, or several with the names of the mechanisms.
        sampling: ``poisson`` or ``fixed_size`` where a secret sample amplifies, else ``unamplified``.
        accountant: what worked it out; ``none`` when ``epsilon`` is ``None``.
        reason: why it is unbounded, or what the figure rests on.
    """

    name: Adversary
    epsilon: float | None
    delta: float
    unit: str
    adjacency: str
    sampling: str
    accountant: str
    reason: str


def account(plan: Plan) -> tuple[AdversaryEpsilon, ...]:
    """Return the rows ``released-model``, ``server``, ``network``, ``device-thief`` of ``plan``.

    Of one window where the plan ``renews``. Unbounded is ``None`` with a reason. A mechanism without noise or clip
    that releases anything leaves every row unbounded; one with 0 steps costs nothing. Takes about a second for a plan
    with sampling.
    """
    return tuple(_row(plan, name, FINE) for name in ADVERSARIES)


def account_adversary(plan: Plan, adversary: Adversary, interval: float = FINE) -> AdversaryEpsilon:
    """Return one row of ``account``; a wider ``interval`` of the PLD is faster and still an upper bound.

    Raises:
        PlanError: there is no such adversary.
    """
    if adversary not in ADVERSARIES:
        raise PlanError(f"adversary is {adversary!r}: choose one of {', '.join(ADVERSARIES)}")
    return _row(plan, adversary, interval)


def epsilon_curve(plan: Plan, adversary: Adversary) -> list[tuple[int, float | None]]:
    """Return (releases so far, epsilon spent) along the plan, at most about 40 points, for a picture.

    The first release and the end of every mechanism are points, and the last point is the figure of
    ``account``. Unsampled prefixes come from the closed form, sampled ones from a PLD with wide cells,
    both within 1e-3 of ``account`` on the same prefix. Empty when nothing is released; epsilon is
    ``None`` where unbounded.
    """
    ends = [sum(m.steps for m in plan.mechanisms[: i + 1]) for i in range(len(plan.mechanisms))]
    total = ends[-1] if ends else 0
    if total == 0:
        return []
    last = max(2, _CURVE_POINTS - len(ends)) - 1
    points = sorted({1 + (total - 1) * i // last for i in range(last + 1)} | {end for end in ends if end > 0})
    curve = [(count, epsilon_after(plan, count, adversary)) for count in points[:-1]]
    return [*curve, (total, account_adversary(plan, adversary).epsilon)]


def epsilon_after(plan: Plan, count: int, adversary: Adversary, interval: float = COARSE) -> float | None:
    """Return the epsilon of the plan's first ``count`` releases: the closed form, or a PLD of cells of ``interval``.

    Without amplification that is exact and costs nothing; else an upper bound. ``None`` where unbounded.
    """
    spent = first_releases(plan, count)
    if not _unbounded(spent, adversary):
        amplified = adversary == "released-model" and bool(_amplifies(spent))
        exact = closed_form_epsilon(_composition(spent, amplified=amplified), spent.delta)
        if exact is not None:
            return exact
    return account_adversary(spent, adversary, interval).epsilon


def first_releases(plan: Plan, count: int) -> Plan:
    """Return the plan cut after its first ``count`` releases, mechanisms in the order of the plan."""
    kept = []
    for mechanism in plan.mechanisms:
        steps = min(mechanism.steps, max(0, count))
        kept.append(replace(mechanism, steps=steps))
        count -= steps
    return replace(plan, mechanisms=tuple(kept))


def cross_check(plan: Plan) -> dict[str, float | None]:
    """Return the ``released-model`` epsilon by ``pld``, by ``rdp`` and, unamplified, by the ``closed_form``.

    closed form <= PLD <= RDP. ``None``: unbounded, or no such accountant for this plan.
    """
    row = account_adversary(plan, "released-model")
    if row.epsilon is None:
        return {"pld": None, "rdp": None, "closed_form": None}
    composition = _composition(plan, amplified=bool(_amplifies(plan)))
    return {
        "pld": None if composition.subsets else row.epsilon,
        "rdp": rdp_epsilon(composition, plan.delta),
        "closed_form": closed_form_epsilon(composition, plan.delta),
    }


def shift(plan: Plan, mechanism: Mechanism) -> float:
    """Return how far one unit of ``plan`` moves the mechanism's clipped sum, in clips: 1 or 2."""
    return shift_of(_adjacency(plan, mechanism))


def participation_mu(plan: Plan, mechanism: Mechanism) -> float:
    """Return the mu of one device's taking part once, its presence known: what a device charges itself.

    Infinite without noise or clip. n participations amount to sqrt(n) times as much: exactly, and under correlated
    noise at most.
    """
    if mechanism.noise_multiplier == 0 or mechanism.clip_norm is None:
        return math.inf
    return shift(plan, mechanism) * single_sensitivity(mechanism) / mechanism.noise_multiplier


def after_windows(plan: Plan, windows: int) -> tuple[AdversaryEpsilon, ...]:
    """Return the rows of ``account`` after so many windows of a plan that ``renews``, all steps spent in each."""
    mechanisms = tuple(replace(m, steps=m.steps * windows) for m in plan.mechanisms)
    return account(replace(plan, mechanisms=mechanisms, renews="never"))


def _row(plan: Plan, name: Adversary, interval: float) -> AdversaryEpsilon:
    amplified = _amplifies(plan) if name == "released-model" else ""
    epsilon, accountant, reason = None, "none", _unbounded(plan, name)
    if not reason:
        epsilon, accountant = epsilon_of(_composition(plan, amplified=bool(amplified)), plan.delta, interval)
        if amplified == "fixed_size":
            plain = epsilon_of(_composition(plan, amplified=False), plan.delta, interval)
            if plain[0] < epsilon:
                amplified, (epsilon, accountant) = "", plain
        reason = _basis(plan, name, amplified)
        if not math.isfinite(epsilon):
            epsilon, accountant, reason = None, "none", f"delta {plan.delta} is below what the accountant can resolve"
    return AdversaryEpsilon(
        name=name,
        epsilon=epsilon,
        delta=plan.delta,
        unit=plan.unit,
        adjacency=_adjacency_text(plan, name),
        sampling=amplified or "unamplified",
        accountant=accountant,
        reason=reason,
    )


def _unbounded(plan: Plan, name: Adversary) -> str:
    if name == "device-thief":
        return "the device's files hold the events themselves: encryption at rest and permissions protect them"
    if name == "server" and plan.trust == "central":
        return "a central plan trusts the server with every device's un-noised update"
    bare = [m.name for m in plan.mechanisms if m.steps > 0 and (m.noise_multiplier == 0 or m.clip_norm is None)]
    return f"released without noise: {', '.join(bare)}" if bare else ""


def _basis(plan: Plan, name: Adversary, amplified: str) -> str:
    if not any(m.steps for m in plan.mechanisms):
        return "nothing is released"
    said = _basis_of_sampling(plan, name, amplified)
    return (
        said
        if plan.renews == "never"
        else f"for one {plan.renews} (UTC): the budget renews, and windows add up; {said}"
    )


def _basis_of_sampling(plan: Plan, name: Adversary, amplified: str) -> str:
    limited = [m for m in plan.mechanisms if m.steps and m.sampling == "limited"]
    most = ", ".join(f"{m.name} at most {m.participations} times, {m.min_gap} rounds apart" for m in limited)
    if amplified == "poisson":
        coins = "the coins of each unit are independent and secret, and nothing else tells who took part"
        return f"{coins}; limited without secrets: {most}" if limited else coins
    if amplified:
        return "cohorts are uniform subsets of a public size, secret, and nothing else tells who took part"
    if limited:
        return f"needs no secret sampling: a device takes part in {most}, and enforces it itself"
    if plan.trust == "distributed":
        return f"noise of the survivors beyond {plan.colluders} colluders; below the minimum a round is void"
    if name == "network":
        return "sees who takes part, so sampling does not count"
    if plan.trust == "local":
        return "each update is private by itself; a device takes part at most as often as the plan's steps"
    if plan.unit == "user" and any(m.steps and m.sampling == "fixed_size" for m in plan.mechanisms):
        return "no credit for the secret cohort: the accountant for it gives a looser bound here"
    if any(m.steps and m.sample_rate < 1 for m in plan.mechanisms):
        return "sampling devices does not amplify unit interaction: other samples show who took part"
    return "everyone takes part in every release"


def _amplifies(plan: Plan) -> str:
    """Return the sampling that amplifies against ``released-model``: ``poisson``, ``fixed_size``, or none."""
    if plan.unit != "user" or plan.trust != "central":
        return ""
    kinds = {m.sampling for m in plan.mechanisms if m.steps and m.sample_rate < 1}
    return next((kind for kind in ("poisson", "fixed_size") if kind in kinds), "")


def _adjacency(plan: Plan, mechanism: Mechanism) -> Adjacency:
    return "replace_one" if (plan.unit, plan.trust) == ("user", "local") else mechanism.adjacency


def _adjacency_text(plan: Plan, adversary: Adversary) -> str:
    # Who sees that a device takes part tells its data from nothing, not its presence from its absence: server and
    # network always, everybody where a round may be void for want of one device.
    void = any(m.steps and m.min_survivors for m in plan.mechanisms)
    seen = plan.unit == "user" and (void or adversary in ("server", "network"))
    names: dict[str, list[str]] = {}
    for m in plan.mechanisms:
        if m.steps:
            kind = _adjacency(plan, m)
            names.setdefault("zero_out" if seen and kind == "add_remove" else kind, []).append(m.name)
    if len(names) <= 1:
        return next(iter(names), "add_remove")
    return "; ".join(f"{kind} ({', '.join(who)})" for kind, who in sorted(names.items()))


def _composition(plan: Plan, *, amplified: bool) -> Composition:
    return compose(((m, _adjacency(plan, m)) for m in plan.mechanisms), amplified=amplified)
