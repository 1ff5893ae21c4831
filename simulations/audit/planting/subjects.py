"""Small worlds that stand for the kinds of plans there are: what seeded bugs are planted in."""

from dataclasses import replace
from functools import cache
from typing import Any

from fedrecall.protocol.plan import Plan
from fedrecall.simulations.config import RunConfig, parse_config
from fedrecall.simulations.data.synthetic import synthetic_dataset
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import World, shape_of

_DEVICES = {"central": 96, "sampled": 240, "limited": 96, "local": 20, "adaptive": 96}
_ITEMS = 80
CANARIES = {"central": 40, "sampled": 40, "limited": 40, "local": 12, "adaptive": 40}
"""Canary devices that the suite enrols in each; those of ``local`` are simulated one by one."""

_COMMON: dict[str, Any] = {
    "threads": 1,
    "data": {"name": "synthetic"},
    "model": {"dim": 8, "window": 8, "blocks": 1, "hidden": 16},
    "local": {"negatives": 16, "blocks": 4},
    "server": {"optimiser": "fedavgm", "learning_rate": 0.05, "momentum": 0.5, "checkpoint_every": 100},
}

_KINDS: dict[str, dict[str, Any]] = {
    "central": {
        "privacy": {"epsilon": 8.0, "clip_norm": 0.05},
        "start": {"items": 60},
        "rounds": {"count": 5, "evaluate_every": 5},
    },
    "sampled": {
        "privacy": {"epsilon": 8.0, "clip_norm": 0.05, "shares": {"rounds": 1.0}},
        "start": {"enabled": False},
        "rounds": {"count": 6, "cohort": 60, "evaluate_every": 6},
    },
    "limited": {
        "privacy": {"epsilon": 8.0, "clip_norm": 0.05, "shares": {"rounds": 1.0}},
        "start": {"enabled": False},
        "rounds": {"count": 9, "cohort": 32, "sampling": "limited", "bands": 3, "evaluate_every": 9},
    },
    "local": {
        "engine": "device",
        "privacy": {
            "epsilon": 8.0,
            "clip_norm": 0.05,
            "unit": "interaction",
            "trust": "local",
            "shares": {"popularity": 0.6, "rounds": 0.4},
        },
        "start": {"items": 0},
        "rounds": {"count": 2, "evaluate_every": 2},
    },
    "adaptive": {
        "privacy": {"epsilon": 8.0, "clip_norm": 1.3, "shares": {"rounds": 1.0}, "adaptive_clip": {"share": 0.2}},
        "start": {"enabled": False},
        "rounds": {"count": 6, "evaluate_every": 6},
        "server": {"optimiser": "fedadam", "average": "ema", "ema_decay": 0.5, "checkpoint_every": 100},
    },
}
SUBJECTS = tuple(_KINDS)


def subject(kind: str, seed: int) -> World:
    """Return the small world of ``kind``, a name of ``SUBJECTS``; data, noise and coins follow ``seed``."""
    config = parse_config({**_COMMON, **_KINDS[kind], "seed": seed})
    devices = _DEVICES[kind]
    dataset = synthetic_dataset(users=devices, items=_ITEMS, events_per_user=12, tastes=4, seed=seed)
    plan = _plan(kind)
    shape = shape_of(config, _ITEMS, 0, 1)
    return World(config=config, plan=plan, store=dataset.events, features=None, shape=shape)


@cache
def _plan(kind: str) -> Plan:
    config = _config(kind)
    if kind != "sampled":
        return plan_for(config, _DEVICES[kind])
    # To calibrate noise under sampling takes seconds; an audit works with any noise that is accounted.
    privacy = config.privacy.model_copy(update={"epsilon": None})
    bare = plan_for(config.model_copy(update={"privacy": privacy}), _DEVICES[kind])
    noised = replace(bare.mechanism("rounds"), noise_multiplier=1.2, clip_norm=config.privacy.clip_norm)
    return replace(bare, mechanisms=(noised,))


def _config(kind: str) -> RunConfig:
    return parse_config({**_COMMON, **_KINDS[kind]})
