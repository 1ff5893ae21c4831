"""What a device answers to a hostile operator does not depend on its events: a refusal would be a bit for nothing.

Invitations and asks are sound ones with hostile values put in at random places; two devices that are neighbours get
each, and the kind of answer, its length and the charges must be the same.
"""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from fedrecall.client.config import LocalConfig
from fedrecall.client.device.app import reason_of
from fedrecall.client.device.enrolment import EVENTS, LEDGER
from fedrecall.client.device.folder import DeviceFolder, task_of
from fedrecall.client.events.database import EventDatabase
from fedrecall.client.events.events import Events
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.errors import CorruptArtefact
from fedrecall.protocol.invitation import Invitation
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.tensors import unpack

HOSTILE: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 7, 10**6, 2**31, 2**63, 10**30, 1e-60, 1e-300, 5e-324, 1e-7, 0.5, 1e7, 1e30, 1e38, 1e60, 1e308),
    *(math.nan, math.inf, -math.inf, -0.0, True, False, None, "", "x", "rounds", "popularity", [], {}, [1], {"a": 1}),
    *("user", "interaction", "central", "local", "distributed", "add_remove", "replace_one", "zero_out", "limited"),
)
ITEMS = ("target", "b", "c", "d", "e", "f")


def sound(unit: str, trust: str, rng: np.random.Generator) -> dict[str, Any]:
    shape = ModelShape(
        n_items=len(ITEMS),
        n_features=0,
        n_types=2,
        dim=4,
        window=int(rng.integers(2, 5)),
        blocks=1,
        heads=2,
        hidden=4,
        user_dim=2,
        user_hidden=2,
    )
    adjacency = "replace_one" if unit == "interaction" or trust == "local" else "add_remove"
    mechanisms = [
        Mechanism(name="rounds", clip_norm=0.1, noise_multiplier=4.0, steps=3, adjacency=adjacency),
    ]
    if (unit, trust) == ("user", "central"):
        mechanisms = [
            *(Mechanism(name=name, clip_norm=1.0, noise_multiplier=9.0) for name in ("popularity", "second_moments")),
            *mechanisms,
        ]
    plan = Plan(unit=unit, trust=trust, delta=1e-5, devices=9, mechanisms=tuple(mechanisms), simulated=False)
    local = LocalConfig(negatives=4, blocks=2, steps=1 if unit == "interaction" else int(rng.integers(1, 3)))
    task = task_of(plan, shape, local, shared_names(initial_arrays(shape, 5)), 5)
    return Invitation(
        number=0,
        task=task,
        address="127.0.0.1:9092",
        root_certificates=None,
        items=ITEMS,
        event_weights={"view": 1.0, "buy": float(rng.choice([1e-6, 1e-3, 1.0, 1e6]))},
    ).to_dict()


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at] if at else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*at, key))
    elif isinstance(value, list):
        for key, inner in enumerate(value):
            found += places(inner, (*at, key))
    return found


def put(data: Any, at: tuple[Any, ...], value: Any) -> None:
    for key in at[:-1]:
        data = data[key]
    data[at[-1]] = value


def tampered(data: dict[str, Any], rng: np.random.Generator, keys: list[tuple[Any, ...]]) -> dict[str, Any]:
    data = copy.deepcopy(data)
    for _ in range(int(rng.choice([0, 0, 1, 1, 2]))):
        # An earlier value may have taken the place away.
        try:
            put(data, keys[rng.integers(len(keys))], copy.deepcopy(HOSTILE[rng.integers(len(HOSTILE))]))
        except (TypeError, KeyError, IndexError):
            continue
    return data


def history(rng: np.random.Generator) -> list[tuple[str, str, float]]:
    items, kinds, strengths = [*ITEMS, "elsewhere"], ["view", "buy", "other"], [5e-324, 1e-60, 1e-6, 1.0, 1e30, 1e300]
    many = int(rng.choice([0, 1, 2, 5, 40]))
    return [(str(rng.choice(items)), str(rng.choice(kinds)), float(rng.choice(strengths))) for _ in range(many)]


def device(folder: Path, invitation: Invitation, events: list[tuple[str, str, float]]) -> DeviceFolder:
    folder.mkdir(mode=0o700)
    unit = invitation.task.plan.unit
    made = DeviceFolder.enrol(folder, invitation, Budget(epsilon=8.0, delta=1e-5, unit=unit))
    if events:
        ids, types = tuple({e[0]: 0 for e in events}), tuple({e[1]: 0 for e in events})
        with EventDatabase(folder / EVENTS) as database:
            database.add(
                Events(
                    users=np.zeros(len(events), dtype=np.int64),
                    items=np.array([ids.index(e[0]) for e in events]),
                    times=np.arange(len(events)),
                    types=np.array([types.index(e[1]) for e in events], dtype=np.int8),
                    weights=np.array([e[2] for e in events]),
                    user_ids=("",),
                    item_ids=ids,
                    type_names=types,
                    report={},
                )
            )
    return made


def ask(made: DeviceFolder, rng: np.random.Generator) -> bytes:
    """Return an ask of the device's task, hostile in some of its numbers, or in its form."""
    names = [m.name for m in made.task.plan.mechanisms]
    name = str(rng.choice([*names, "rounds", "rounds"]))
    header: dict[str, Any] = {"round": 0, "mechanism": name, "clip_norm": None, "task": made.task.digest()}
    arrays: dict[str, np.ndarray] = {}
    if name == "rounds":
        arrays = {n: a.copy() for n, a in made.expected.items()}
        size = float(rng.choice([1e-30, 1.0, 1e3, 1e5]))
        arrays[ITEM_ID] = (size * rng.standard_normal(arrays[ITEM_ID].shape)).astype(np.float32)
        header["round"] = int(rng.choice([0, 0, 1, 1, 2, 2**31, 2**40]))
    elif name == "second_moments":
        top = rng.permutation(len(ITEMS))[: rng.integers(2, len(ITEMS) + 1)]
        direction = rng.standard_normal(len(top))
        arrays = {
            "top": top.astype(np.int64),
            "weights": 10.0 ** rng.uniform(-30, 30, len(top)),
            "direction": direction / np.linalg.norm(direction),
            "reach": np.asarray(float(rng.choice([0.01, 1.0, 1e300]))),
        }
    if rng.random() < 0.2 and arrays:
        victim = str(rng.choice(sorted(arrays)))
        if arrays[victim].size:
            arrays[victim] = arrays[victim].copy()
            value = [math.nan, math.inf, 1e38, -1e38, 0.0, 1e20][rng.integers(6)]
            with np.errstate(all="ignore"):
                arrays[victim].reshape(-1)[rng.integers(arrays[victim].size)] = (
                    value if arrays[victim].dtype.kind == "f" else 7
                )
    if rng.random() < 0.1:
        header[str(rng.choice(["round", "clip_norm", "mechanism"]))] = HOSTILE[rng.integers(len(HOSTILE))]
    # As ``pack`` does, which refuses numbers that JSON has not; a hostile server writes what it likes.
    dense = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return save(dense, metadata={"fedrecall": json.dumps(header)})


def outcome(made: DeviceFolder, data: bytes) -> tuple[Any, ...]:
    """Return the kind of answer, its arrays' forms, and what the ledger holds."""
    try:
        arrays, header = unpack(made.answer(data), what="an answer")
        said: tuple[Any, ...] = ("update", sorted(header), {n: (a.shape, str(a.dtype)) for n, a in arrays.items()})
    except Exception as error:
        said = ("refused", reason_of(error))
    lines = [json.loads(line) for line in (made.path / LEDGER).read_text().splitlines()]
    return (*said, [(line["mechanism"], line["round"], line["mu_squared"]) for line in lines if "mechanism" in line])


def same_answers(folder: Path, rng: np.random.Generator) -> str:
    """Play one hostile operator against two neighbours; return how far it came."""
    unit, trust = [("user", "central"), ("user", "local"), ("interaction", "local"), ("interaction", "central")][
        rng.integers(4)
    ]
    honest = sound(unit, trust, rng)
    data = tampered(honest, rng, places(honest))
    try:
        invitation = Invitation.load(written(folder / "invitation.json", data))
    except CorruptArtefact:
        return "no invitation"
    one = history(rng)
    other = list(one)
    if unit == "user":
        other = history(rng)
    else:
        extra = history(rng)
        other.insert(int(rng.integers(0, len(one) + 1)), extra[0] if extra else ("target", "buy", 1.0))
    try:
        first = device(folder / "first", invitation, one)
    except Exception as error:
        reason = reason_of(error)
        assert reason == "plan", f"{error!r} for {data}"
        return "refused at enrolment"
    second = device(folder / "second", invitation, other)
    last = ""
    for _ in range(2):
        asked = ask(first, rng)
        found, expected = outcome(first, asked), outcome(second, asked)
        assert found == expected, (data, one, other)
        last = found[0]
    return f"asked: {last}"


def written(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def fuzz(folder: Path, count: int, seed: int) -> None:
    ends: dict[str, int] = {}
    for number in range(count):
        place = folder / str(number)
        place.mkdir()
        end = same_answers(place, np.random.default_rng([seed, number]))
        ends[end] = ends.get(end, 0) + 1
    print(f"{count} hostile invitations: {ends}")
    assert ends["asked: update"] > count / 8 and ends["no invitation"] + ends["refused at enrolment"] > count / 20


def test_no_answer_depends_on_events(tmp_path: Path) -> None:
    fuzz(tmp_path, 80, 0)


@pytest.mark.slow
def test_no_answer_of_ten_thousand_depends_on_events(tmp_path: Path) -> None:
    fuzz(tmp_path, 10_000, 1)
