import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fedrecall.protocol.errors import PlanError
from fedrecall.protocol.plan import AdaptiveClip, Mechanism, Plan

RELEASE: dict[str, Any] = {"name": "rounds", "noise_multiplier": 2.0, "clip_norm": 0.5, "steps": 20}
LIMITED: dict[str, Any] = RELEASE | {
    "sampling": "limited",
    "sample_rate": 0.2,
    "adjacency": "zero_out",
    "participations": 4,
    "min_gap": 5,
    "bands": 5,
}
SUBSET: dict[str, Any] = RELEASE | {"sampling": "fixed_size", "sample_rate": 0.1, "adjacency": "replace_one"}
COINS: dict[str, Any] = RELEASE | {"sampling": "poisson", "sample_rate": 0.1}
BARE: dict[str, Any] = {"unit": "user", "trust": "central", "delta": 1e-5, "devices": 100}
SHARED: dict[str, Any] = BARE | {"trust": "distributed", "colluders": 2}


def plan_of(*mechanisms: dict[str, Any], **more: Any) -> Plan:
    return Plan(**(BARE | more), mechanisms=tuple(Mechanism(**m) for m in mechanisms))


@pytest.mark.parametrize("base", [RELEASE, LIMITED, SUBSET, COINS])
def test_the_plans_that_the_refusals_start_from_are_plans(base: dict[str, Any]) -> None:
    assert plan_of(base).mechanism("rounds").steps == 20


# Each names the field, its value, and what to do.
MECHANISMS = [
    (RELEASE, {"sampling": "shuffled"}, ["rounds.sampling", "'shuffled'", "choose one of everyone"]),
    (RELEASE, {"adjacency": "swap"}, ["rounds.adjacency", "'swap'", "add_remove, replace_one, zero_out"]),
    (COINS, {"sample_rate": 0.0}, ["rounds.sample_rate", "0.0", "above 0"]),
    (COINS, {"sample_rate": 1.5}, ["rounds.sample_rate", "1.5", "at most 1"]),
    (COINS, {"sample_rate": math.nan}, ["rounds.sample_rate", "nan", "above 0"]),
    (RELEASE, {"sample_rate": 0.5}, ["rounds.sample_rate", "0.5", "it is 1"]),
    (RELEASE, {"noise_multiplier": -1.0}, ["rounds.noise_multiplier", "-1.0", "at least 0"]),
    (RELEASE, {"noise_multiplier": math.inf}, ["rounds.noise_multiplier", "inf", "finite"]),
    (RELEASE, {"noise_multiplier": math.nan}, ["rounds.noise_multiplier", "nan", "finite"]),
    (RELEASE, {"clip_norm": 0.0}, ["rounds.clip_norm", "0.0", "above 0"]),
    (RELEASE, {"clip_norm": math.inf}, ["rounds.clip_norm", "inf", "finite"]),
    (RELEASE, {"clip_norm": math.nan}, ["rounds.clip_norm", "nan", "finite"]),
    (RELEASE, {"clip_norm": None}, ["rounds.clip_norm", "missing", "without a clip"]),
    (RELEASE, {"steps": -1}, ["rounds.steps", "-1", "from 0"]),
    (RELEASE, {"steps": 2.0}, ["rounds.steps", "2.0", "whole"]),
    (RELEASE, {"steps": True}, ["rounds.steps", "True", "whole"]),
    (LIMITED, {"bands": 0}, ["rounds.bands", "0", "from 1"]),
    (RELEASE, {"min_survivors": -3}, ["rounds.min_survivors", "-3", "from 0"]),
    (LIMITED, {"participations": None}, ["rounds.participations", "None", "whole number from 1"]),
    (LIMITED, {"participations": 0}, ["rounds.participations", "0", "whole number from 1"]),
    (LIMITED, {"min_gap": None}, ["rounds.min_gap", "None", "whole number from 1"]),
    (COINS, {"participations": 3}, ["rounds.participations", "3", "leave it out"]),
    (RELEASE, {"min_gap": 2}, ["rounds.min_gap", "2", "leave it out"]),
    (RELEASE, {"bands": 4}, ["rounds.bands", "4", "make it 1"]),
    (SUBSET, {"adjacency": "add_remove"}, ["rounds.adjacency", "'add_remove'", "make it 'replace_one'"]),
    (RELEASE, {"adjacency": "zero_out"}, ["rounds.adjacency", "'zero_out'", "make it 'add_remove'"]),
    (LIMITED, {"adjacency": "add_remove"}, ["rounds.adjacency", "'add_remove'", "'zero_out'"]),
    (LIMITED, {"sample_rate": 0.15}, ["rounds.sample_rate", "0.15", "make it one over"]),
    (LIMITED, {"sample_rate": 0.25, "participations": 5}, ["rounds.sample_rate", "0.25", "lower it"]),  # the gap
    (LIMITED, {"participations": 3}, ["rounds.sample_rate", "0.2", "lower it"]),  # how often
    (RELEASE, {"adaptive_clip": AdaptiveClip(), "clip_norm": None, "noise_multiplier": 0.0}, ["clip_norm", "missing"]),
    (LIMITED, {"adaptive_clip": AdaptiveClip()}, ["rounds.adaptive_clip", "needs bands 1", "fixed clip"]),
]


@pytest.mark.parametrize(("base", "change", "said"), MECHANISMS)
def test_a_mechanism_refuses(base: dict[str, Any], change: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(PlanError) as refused:
        Mechanism(**(base | change))
    assert all(part in str(refused.value) for part in said), refused.value


@pytest.mark.parametrize(
    ("field", "value", "bound"),
    [
        ("quantile", 0.0, "between 0 and 1"),
        ("quantile", 1.0, "between 0 and 1"),
        ("quantile", math.nan, "between 0 and 1"),
        ("share", 0.0, "between 0 and 1"),
        ("share", 1.0, "between 0 and 1"),
        ("learning_rate", 0.0, "above 0"),
        ("learning_rate", 1.1, "at most 1"),
    ],
)
def test_an_adaptive_clip_refuses(field: str, value: float, bound: str) -> None:
    with pytest.raises(PlanError, match=rf"adaptive_clip\.{field} is {value}: .*{bound}"):
        AdaptiveClip(**{field: value})


START = RELEASE | {"name": "start", "steps": 1}
PLANS = [
    ([RELEASE], {"unit": "person"}, ["unit", "'person'", "user, interaction"]),
    ([RELEASE], {"trust": "none"}, ["trust", "'none'", "central, local, distributed"]),
    ([RELEASE], {"renews": "hour"}, ["renews", "'hour'", "never, day"]),
    ([RELEASE], {"delta": 0.0}, ["delta", "0.0", "between 0 and 1"]),
    ([RELEASE], {"delta": 1.0}, ["delta", "1.0", "below 1 / devices"]),
    ([RELEASE], {"delta": math.nan}, ["delta", "nan", "between 0 and 1"]),
    ([RELEASE], {"devices": 0}, ["devices", "0", "at least one"]),
    ([RELEASE], {"devices": 1.5}, ["devices", "1.5", "at least one"]),
    ([RELEASE, RELEASE], {}, ["names", "['rounds', 'rounds']", "its own"]),
    ([SUBSET], {"devices": 103}, ["rounds.sample_rate", "0.1", "103 devices"]),
    ([SUBSET], {"unit": "interaction", "trust": "local"}, ["rounds.sampling", "'fixed_size'", "'everyone'"]),
    ([SUBSET], {"unit": "interaction"}, ["rounds.sampling", "'fixed_size'", "'everyone'"]),
    ([LIMITED], {"unit": "interaction"}, ["rounds.sampling", "'limited'", "'everyone'"]),
    ([LIMITED], {"trust": "distributed"}, ["rounds.sampling", "'limited'", "'central'"]),
    ([LIMITED], {"trust": "local"}, ["rounds.sampling", "'limited'", "'central'"]),
    ([LIMITED], {"renews": "week"}, ["renews", "'week'", "make it 'never'"]),
    ([RELEASE | {"adaptive_clip": AdaptiveClip()}], {"unit": "interaction"}, ["rounds.adaptive_clip", "fixed"]),
    ([RELEASE | {"adaptive_clip": AdaptiveClip()}], {"trust": "local"}, ["rounds.adaptive_clip", "fixed"]),
    ([COINS | {"min_survivors": 5}], {}, ["rounds.min_survivors", "5", "make it 0"]),
    ([SUBSET | {"min_survivors": 5}], {}, ["rounds.min_survivors", "5", "make it 0"]),
    ([RELEASE | {"min_survivors": 2}], SHARED, ["rounds.min_survivors", "2", "2 colluders", "choose more"]),
    ([RELEASE], SHARED | {"colluders": 0}, ["rounds.min_survivors", "0", "choose more"]),
    ([RELEASE], {"colluders": 1}, ["colluders", "1", "make it 0"]),
    ([RELEASE | {"min_survivors": 9}], SHARED | {"colluders": -1}, ["colluders", "-1", "from 0"]),
    ([RELEASE | {"min_survivors": 9}], SHARED | {"colluders": 0.5}, ["colluders", "0.5", "whole"]),
    ([RELEASE | {"min_survivors": 101}], {}, ["rounds.min_survivors", "101", "100 devices"]),
    ([START, SUBSET], {}, ["adjacency of start", "'replace_one' too"]),
    ([START | {"adjacency": "replace_one"}, LIMITED], {}, ["adjacency of rounds", "'replace_one' too"]),
    ([COINS | {"adjacency": "replace_one", "name": "start"}, SUBSET], {}, ["beside 'poisson'", "use one of them"]),
]


@pytest.mark.parametrize(("mechanisms", "change", "said"), PLANS)
def test_a_plan_refuses(mechanisms: list[dict[str, Any]], change: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(PlanError) as refused:
        plan_of(*mechanisms, **change)
    assert all(part in str(refused.value) for part in said), refused.value


def test_what_is_never_released_needs_no_relation_and_no_survivors() -> None:
    plan_of(START | {"steps": 0}, SUBSET)
    plan_of(RELEASE | {"steps": 0}, **SHARED)


@pytest.mark.parametrize("data", [None, [], {}, {"mechanisms": 3}, {"mechanisms": [None]}, {"mechanisms": [{}]}])
def test_what_is_no_plan_is_not_read(data: Any) -> None:
    with pytest.raises(PlanError, match="no privacy plan"):
        Plan.from_dict(data)


def test_an_unknown_key_is_not_read() -> None:
    data = plan_of(RELEASE).to_dict()
    with pytest.raises(PlanError, match="epsilon"):
        Plan.from_dict(data | {"epsilon": 1.0})
    with pytest.raises(PlanError, match="epsilon"):
        Plan.from_dict(data | {"mechanisms": [data["mechanisms"][0] | {"epsilon": 1.0}]})


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw any valid plan of up to three mechanisms."""
    devices = draw(st.integers(1, 10**6))
    made = []
    for i in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["everyone", "poisson", "fixed_size", "limited"]))
        steps, noise = draw(st.integers(0, 300)), draw(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)))
        clip = draw(st.floats(1e-6, 1e6))
        base: dict[str, Any] = {"name": f"m{i}", "steps": steps, "noise_multiplier": noise, "clip_norm": clip}
        base["min_survivors"] = draw(st.integers(0, devices))
        if draw(st.booleans()):
            base["adaptive_clip"] = AdaptiveClip(quantile=draw(st.floats(0.01, 0.99)))
        if kind == "limited":
            turns = draw(st.integers(1, 50))
            base |= {"sample_rate": 1 / turns, "adjacency": "zero_out", "min_gap": draw(st.integers(1, turns))}
            base |= {"participations": max(1, -(-steps // turns)), "bands": draw(st.integers(1, max(1, steps)))}
        elif kind == "fixed_size":
            base |= {"sample_rate": draw(st.integers(1, devices)) / devices, "adjacency": "replace_one"}
        else:
            base["adjacency"] = draw(st.sampled_from(["add_remove", "replace_one"]))
            base["sample_rate"] = 1.0 if kind == "everyone" else draw(st.floats(1e-4, 1.0))
        made.append(base | {"sampling": kind})
    try:
        return Plan(
            unit=draw(st.sampled_from(["user", "interaction"])),
            trust=draw(st.sampled_from(["central", "local", "distributed"])),
            delta=draw(st.floats(1e-12, 0.5)),
            devices=devices,
            mechanisms=tuple(Mechanism(**m) for m in made),
            simulated=draw(st.booleans()),
            renews=draw(st.sampled_from(["never", "day", "week", "month"])),
        )
    except PlanError:
        assume(False)
        raise


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(plan=plans())
def test_a_stored_plan_is_read_back_as_it_was(plan: Plan) -> None:
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False)))
    assert again == plan and again.digest() == plan.digest()
    assert {field.name for field in fields(Plan)} == set(plan.to_dict())


OTHERS: dict[str, Any] = {
    "name": "other",
    "sampling": ("everyone", {"sample_rate": 1.0}),
    "sample_rate": 0.11,
    "noise_multiplier": 2.0000000001,
    "clip_norm": 0.5000000001,
    "steps": 21,
    "adjacency": "replace_one",
    "participations": (5, LIMITED),
    "min_gap": (4, LIMITED),
    "bands": (4, LIMITED),
    "min_survivors": (1, RELEASE),
    "adaptive_clip": AdaptiveClip(),
}


@pytest.mark.parametrize("field", [field.name for field in fields(Mechanism)])
def test_the_digest_changes_with_every_field_of_a_mechanism(field: str) -> None:
    value = OTHERS[field]
    more = value[1] if isinstance(value, tuple) else {}
    base = more if "name" in more else COINS
    change = {field: value[0] if isinstance(value, tuple) else value} | ({} if "name" in more else more)
    assert plan_of(base).digest() != plan_of(base | change).digest()


@pytest.mark.parametrize("field", [field.name for field in fields(AdaptiveClip)])
def test_the_digest_changes_with_every_field_of_an_adaptive_clip(field: str) -> None:
    first = plan_of(COINS | {"adaptive_clip": AdaptiveClip()})
    other = plan_of(COINS | {"adaptive_clip": replace(AdaptiveClip(), **{field: 0.3})})
    assert first.digest() != other.digest()


PLAN_OTHERS: dict[str, Any] = {
    "unit": "interaction",
    "trust": "local",
    "delta": 1.0000001e-5,
    "devices": 101,
    "mechanisms": (),
    "simulated": False,
    "renews": "week",
}


@pytest.mark.parametrize("field", [field.name for field in fields(Plan)])
def test_the_digest_changes_with_every_field_of_a_plan(field: str) -> None:
    if field == "colluders":
        plan = plan_of(RELEASE | {"min_survivors": 9}, **SHARED)
        assert plan.digest() != replace(plan, colluders=3).digest()
        return
    plan = plan_of(COINS)
    assert plan.digest() != replace(plan, **{field: PLAN_OTHERS[field]}).digest()
    assert len(plan.digest()) == 64 and plan.digest() == plan_of(COINS).digest()


def test_the_order_of_releases_is_part_of_the_plan() -> None:
    assert plan_of(START, RELEASE).digest() != plan_of(RELEASE, START).digest()


def test_equal_plans_have_equal_digests_however_their_numbers_are_spelled() -> None:
    whole, broken = (
        Plan(
            unit="user",
            trust="central",
            delta=1e-5,
            devices=10,
            mechanisms=(Mechanism(name="m", noise_multiplier=kind(2), clip_norm=kind(1), sample_rate=kind(1)),),
        )
        for kind in (int, float)
    )
    assert whole == broken and whole.digest() == broken.digest()


@pytest.mark.parametrize("field", ["simulated", "devices", "delta", "unit", "trust", "renews", "colluders"])
@pytest.mark.parametrize("value", [-math.inf, math.nan, "x", 1.5, None, [1], {}])
def test_a_plan_of_wrong_types_is_refused_as_one(field: str, value: object) -> None:
    with pytest.raises(PlanError):
        Plan.from_dict({**plan_of(COINS).to_dict(), field: value})


@pytest.mark.parametrize("field", sorted(plan_of(COINS).to_dict()["mechanisms"][0]))
@pytest.mark.parametrize("value", [-math.inf, math.nan, "", 2.5, [1], {}])
def test_a_mechanism_of_wrong_types_is_refused_as_one(field: str, value: object) -> None:
    if value in ({}, "") and field == "adaptive_clip":
        return  # none
    plan = plan_of(COINS).to_dict()
    plan["mechanisms"][0][field] = value
    if (field, value) in (("noise_multiplier", 2.5), ("clip_norm", 2.5)):
        assert Plan.from_dict(plan).mechanism("rounds")
        return
    with pytest.raises(PlanError):
        Plan.from_dict(plan)
