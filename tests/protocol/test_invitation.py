"""An invitation comes from outside: what is not exactly one is refused, and names what is wrong."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError, PlanError
from fedrecall.protocol.invitation import Invitation
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.task import Task

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
PLAN = Plan(
    unit="user",
    trust="central",
    delta=1e-5,
    devices=3,
    mechanisms=(Mechanism(name="rounds", noise_multiplier=1.0, clip_norm=1.0, steps=2),),
    simulated=False,
)
SHAPE = {"n_items": 3, "n_features": 2, "n_types": 2}
TASK = Task(plan=PLAN, shape=SHAPE, local={}, trained=("item.id.weight",), seed=1)


def invitation(**changes: Any) -> Invitation:
    fields: dict[str, Any] = {
        "number": 2,
        "task": TASK,
        "address": "recall.example.org:9092",
        "root_certificates": PEM,
        "items": ("b", "a", "ü 1"),
        "event_weights": {"buy": 3.0, "view": 1.0},
        "features": np.array([[0, 1], [0.1, 2], [3, 4]], dtype=np.float32),
        "release": "https://example.org/releases",
    }
    return Invitation(**(fields | changes))


def test_what_is_saved_is_what_is_loaded_and_for_one_pair_of_eyes(tmp_path: Path) -> None:
    first = invitation()
    first.save(tmp_path / "invitation.json")
    again = Invitation.load(tmp_path / "invitation.json")
    assert again.to_dict() == first.to_dict() and again.task.digest() == TASK.digest()
    assert again.items == first.items and list(again.event_weights) == ["buy", "view"]
    assert again.features is not None and again.features.dtype == np.float32
    np.testing.assert_array_equal(again.features, first.features)
    assert stat.S_IMODE((tmp_path / "invitation.json").stat().st_mode) == 0o600


WRONG: dict[str, dict[str, Any]] = {
    "number": {"number": 3},
    "number below 0": {"number": -1},
    "number that is a bool": {"number": True},
    "number as text": {"number": "1"},
    "address without a port": {"address": "example.org"},
    "address of port 0": {"address": "example.org:0"},
    "address of port 65536": {"address": "example.org:65536"},
    "address that is an option": {"address": "--insecure:1"},
    "address with a space": {"address": "a b:1"},
    "address with a path": {"address": "https://example.org:1"},
    "address with a line break": {"address": "example.org:1\n"},
    "address that is none": {"address": None},
    "no TLS to another machine": {"root_certificates": None},
    "no TLS to a name that only begins as this machine's": {
        "root_certificates": None,
        "address": "127.0.0.1.example.org:1",
    },
    "no certificate": {"root_certificates": "hello"},
    "a private key": {"root_certificates": PEM + "-----BEGIN PRIVATE KEY-----"},
    "items that repeat": {"items": ("a", "b", "a")},
    "too few items": {"items": ("a", "b")},
    "an item that is no text": {"items": ("a", "b", 3)},
    "an empty item": {"items": ("a", "b", "")},
    "an item that no file can hold": {"items": ("a", "b", " c")},
    "an item that is no UTF-8": {"items": ("a", "b", "\ud800")},
    "a long item": {"items": ("a", "b", "c" * 1025)},
    "items as a list": {"items": ["a", "b", "c"]},
    "a type too few": {"event_weights": {"view": 1.0}},
    "a weight of 0": {"event_weights": {"buy": 0.0, "view": 1.0}},
    "an infinite weight": {"event_weights": {"buy": float("inf"), "view": 1.0}},
    "a weight that is a bool": {"event_weights": {"buy": True, "view": 1.0}},
    "no features": {"features": None},
    "features of another shape": {"features": np.zeros((3, 1), np.float32)},
    "features in float64": {"features": np.zeros((3, 2))},
    "features with NaN": {"features": np.full((3, 2), np.nan, np.float32)},
    "a release that is no text": {"release": 3},
    "a task that is none of a model": {"task": replace(TASK, shape={})},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused(name: str) -> None:
    with pytest.raises(PlanError):
        invitation(**WRONG[name])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "127.1.2.3"])
def test_this_machine_needs_no_tls(host: str) -> None:
    assert invitation(root_certificates=None, address=f"{host}:9092").root_certificates is None


MANGLED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "more than is known": lambda d: d | {"script": "x"},
    "less": lambda d: {k: v for k, v in d.items() if k != "items"},
    "another format": lambda d: d | {"format": "invitation/2"},
    "a list": lambda d: [d],
    "items that are text": lambda d: d | {"items": "abc"},
    "types that are a list": lambda d: d | {"event_weights": ["buy", "view"]},
    "a task that is text": lambda d: d | {"task": "x"},
    "a task without a plan": lambda d: d | {"task": {k: v for k, v in d["task"].items() if k != "plan"}},
    "features that are ragged": lambda d: d | {"features": [[1.0], [1.0, 2.0], []]},
    "features that are text": lambda d: d | {"features": "x"},
    "features beyond float32": lambda d: d | {"features": [[1e39, 0], [0, 0], [0, 0]]},
    "a negative zero port": lambda d: d | {"address": "example.org:-0"},
}


@pytest.mark.parametrize("name", MANGLED)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_mangled_file_is_corrupt(name: str, tmp_path: Path) -> None:
    (tmp_path / "invitation.json").write_text(json.dumps(MANGLED[name](invitation().to_dict())))
    with pytest.raises(CorruptArtefact, match=r"invitation\.json"):
        Invitation.load(tmp_path / "invitation.json")


def test_a_file_that_is_missing_or_no_json_is_corrupt(tmp_path: Path) -> None:
    for content in (None, b"", b"{", b"\xff", b"[" * 100_000):
        path = tmp_path / "invitation.json"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CorruptArtefact):
            Invitation.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(sorted(invitation().to_dict())), value=JSON)
def test_any_value_in_any_place_is_an_invitation_or_a_typed_error(key: str, value: Any) -> None:
    with np.errstate(over="ignore"):
        try:
            found = Invitation.from_dict(invitation().to_dict() | {key: value})
        except FedrecallError:
            return
    assert Invitation.from_dict(json.loads(json.dumps(found.to_dict()))).to_dict() == found.to_dict()
