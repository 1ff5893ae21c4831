"""Whether a task's plan is true of the work that it asks for: the one check, for devices, servers and simulations.

A plan says how far one unit moves a release; the task says what devices compute. Whoever invites devices may lie, so a
device asks this of every task that it is invited to, and again at every ask; where plans are built the same is asked
first. It reads public numbers alone, so that no answer depends on anybody's events (docs/privacy.md, rules 15 and 16).
"""

import math
from typing import Any

from fedrecall.privacy.accounting.delta import delta_warning
from fedrecall.protocol.allow_list import SHARED_PREFIXES
from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import ROUNDS, Mechanism, Plan
from fedrecall.protocol.statistics import POPULARITY, SECOND_MOMENTS
from fedrecall.protocol.task import Task

_SHAPE = {
    "n_items": (1, 1 << 24),
    "n_features": (0, 1 << 16),
    "n_types": (1, 127),
    "dim": (2, 4096),
    "window": (2, 4096),
    "blocks": (0, 64),
    "heads": (1, 256),
    "hidden": (1, 1 << 15),
    "user_dim": (1, 4096),
    "user_hidden": (1, 1 << 15),
}
"""Sizes of a model, from and to. What is larger is a mistake, or meant to exhaust a device."""

_MOST_NUMBERS = 1 << 28
"""Numbers of a model: a gigabyte."""

_LOCAL: dict[str, tuple[float, float]] = {
    "negatives": (1, 1 << 16),
    "steps": (1, 10_000),
    "learning_rate": (1e-12, 1e6),
    "tower_learning_rate": (0.0, 1e6),
    "dropout": (0.0, 0.99),
    "blocks": (1, 4096),
}
"""A device's work in a round, from and to."""

_WHOLE = {"negatives", "steps", "blocks"}
_MOST_STEPS, _MOST_DEVICES, _MOST_BANDS = 1_000_000, 10**10, 10_000
_SIZES = (1e-12, 1e12)
_NOISE = (1e-6, 1e12)
"""Below it there is no bound at all, and the clips of all blocks dwarf the noise: a refusal that tells of the data."""
_LARGEST_DELTA = 1e-2
"""A chance of one in a hundred that nothing holds is no promise, also to a handful of devices."""
_MOST_TRAINED, _LONGEST_NAME = 1000, 200


def check_task(task: Task) -> None:
    """Refuse a task under which what its plan says of privacy would not be true, or that no device could bear.

    Guarantees when it returns, for a device that computes and lets out what the task asks for: one unit of the plan
    moves what a mechanism sums by at most ``shift`` clips, as the accountant counts it; noise is added by whoever the
    plan trusts with it; all sizes are ones that a device can hold.

    Raises:
        PlanError: names the field, its value, and what to make it.
    """
    _check_sizes(task)
    _check_plan(task.plan)
    for mechanism in task.plan.mechanisms:
        _check_mechanism(task.plan, mechanism)
    if task.plan.unit == "interaction":
        _check_interaction(task)


def _check_plan(plan: Plan) -> None:
    names = [m.name for m in plan.mechanisms]
    if unknown := sorted(set(names) - {POPULARITY, SECOND_MOMENTS, ROUNDS}):
        raise PlanError(f"the plan has mechanisms {unknown}: nobody knows what devices would send for them")
    if ROUNDS not in names:
        raise PlanError(f"the plan has mechanisms {names}, and no {ROUNDS!r}: add it, with 0 steps if none are wanted")
    if plan.trust == "distributed":
        raise PlanError(
            "trust is 'distributed': without secure aggregation an un-noised update would leave; it has not landed: "
            "use 'central'"
        )
    if plan.devices > _MOST_DEVICES:
        raise PlanError(f"devices is {plan.devices}: a plan has at most {_MOST_DEVICES}")
    if not plan.simulated and plan.delta > _LARGEST_DELTA:
        raise PlanError(f"delta is {plan.delta}: in earnest at most {_LARGEST_DELTA:g}, however few devices there are")
    if not plan.simulated and (warning := delta_warning(plan.delta, plan.devices)):
        raise PlanError(warning)


def _check_mechanism(plan: Plan, m: Mechanism) -> None:
    for name, most in (("steps", _MOST_STEPS), ("bands", _MOST_BANDS), ("participations", _MOST_STEPS)):
        if (getattr(m, name) or 0) > most:
            raise PlanError(f"{m.name}.{name} is {getattr(m, name)}: at most {most}")
    for name, (low, high) in (("clip_norm", _SIZES), ("noise_multiplier", _NOISE)):
        value = getattr(m, name)
        if value and not low <= value <= high:
            raise PlanError(f"{m.name}.{name} is {value}: choose it from {low:g} to {high:g}")
    if m.name == ROUNDS or not m.steps:
        return
    if (m.sampling, m.steps, m.min_survivors, m.adaptive_clip) != ("everyone", 1, 0, None):
        raise PlanError(f"{m.name} must be one release over everyone, void for nobody, with a fixed clip")
    # The noise is sized by the clip, and contributions have norm 1: the ledger would count too little.
    if m.clip_norm not in (None, 1.0):
        raise PlanError(f"{m.name}.clip_norm is {m.clip_norm}: contributions have norm 1; make it 1")
    if m.name == SECOND_MOMENTS and (plan.unit, plan.trust) != ("user", "central"):
        raise PlanError(
            f"{m.name} under unit {plan.unit!r} and trust {plan.trust!r}: one event moves many pairs of items, and "
            "devices add no noise to them; leave second moments out, or use unit 'user' with trust 'central'"
        )


def _check_interaction(task: Task) -> None:
    """Refuse what makes one event move more than the sample that it is in (theorem 2 of docs/privacy.md)."""
    if task.local["tower_learning_rate"] != 0:
        raise PlanError(
            f"local.tower_learning_rate is {task.local['tower_learning_rate']}: a tower that learns in rounds carries "
            "one event into the samples of others; make it 0 under unit 'interaction' (rule 1)"
        )
    if task.local["steps"] != 1:
        raise PlanError(
            f"local.steps is {task.local['steps']}: under unit 'interaction' a round is one gradient at the released "
            "weights, clipped by sample; make it 1 (rule 1)"
        )
    rounds = task.plan.mechanism(ROUNDS)
    if rounds.steps and rounds.adjacency != "replace_one":
        raise PlanError(
            f"{ROUNDS}.adjacency is {rounds.adjacency!r}: one event more exchanges the gradient of its block for "
            "another, which moves the sum by two clips; make it 'replace_one' under unit 'interaction'"
        )


def _check_sizes(task: Task) -> None:
    if set(task.shape) != set(_SHAPE):
        raise PlanError(f"shape has {sorted(task.shape)}: a model has {sorted(_SHAPE)}")
    for name, (least, most) in _SHAPE.items():
        _within("shape", name, task.shape[name], least, most, whole=True)
    sizes = task.shape
    if sizes["dim"] % sizes["heads"]:
        raise PlanError(f"shape.heads is {sizes['heads']}: it must divide dim, which is {sizes['dim']}")
    numbers = sizes["dim"] * (sizes["n_items"] + sizes["n_features"] + sizes["window"])
    numbers += sizes["blocks"] * sizes["dim"] * (4 * sizes["dim"] + 2 * sizes["hidden"])
    numbers += (sizes["dim"] + sizes["user_dim"]) * sizes["user_hidden"] + sizes["user_hidden"] * sizes["dim"]
    if numbers > _MOST_NUMBERS:
        raise PlanError(f"shape makes a model of {numbers} numbers: at most {_MOST_NUMBERS}")
    if unknown := sorted(set(task.local) ^ set(_LOCAL)):
        raise PlanError(f"local lacks or does not know {unknown}: a round's work has {sorted(_LOCAL)}; update it")
    for name, (low, high) in _LOCAL.items():
        _within("local", name, task.local[name], low, high, whole=name in _WHOLE)
    samples = task.local["blocks"] if task.plan.unit == "interaction" else 1
    if samples * sizes["window"] * sizes["dim"] > _MOST_NUMBERS:
        raise PlanError(f"local.blocks is {samples}: its samples have more than {_MOST_NUMBERS} numbers; make it less")
    if not 0 <= task.seed < 2**63:
        raise PlanError(f"seed is {task.seed}: choose it from 0 to 2^63 - 1")
    names = task.trained
    if not all(name.startswith(SHARED_PREFIXES) and len(name) <= _LONGEST_NAME for name in names):
        raise PlanError(f"trained names what may not leave a device: names begin with {' or '.join(SHARED_PREFIXES)}")
    if len(set(names)) != len(names) or len(names) > _MOST_TRAINED:
        raise PlanError(f"trained has {len(names)} names, {len(set(names))} of them different: name each array once")


def _within(where: str, name: str, value: Any, least: float, most: float, *, whole: bool) -> None:
    number = isinstance(value, int) if whole else isinstance(value, int | float)
    if not number or isinstance(value, bool) or not math.isfinite(value) or not least <= value <= most:
        kind = "a whole number" if whole else "a number"
        raise PlanError(f"{where}.{name} is {str(value)[:50]}: choose {kind} from {least:g} to {most:g}")
