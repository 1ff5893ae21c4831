"""The private start on a device: what leaves its folder, once, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrecall.client.device.folder import DeviceFolder
from fedrecall.client.events.store import EventStore
from fedrecall.client.gate import let_out_statistic
from fedrecall.client.training.start import popularity, second_moments
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.protocol.errors import BudgetExhausted, PlanError, UpdateError
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.records import Arrays, Comparison
from fedrecall.protocol.statistics import Popularity, SecondMoments, arrays_of
from fedrecall.protocol.tensors import pack, unpack

from ..device.small_devices import UNLIMITED, enrol_one, ingest_store, world_of
from .engine_contract import CASES, HISTORIES, Case, World

N_ITEMS = 12
STATISTICS = ("popularity", "second_moments")
ONCE = tuple(Mechanism(name=name, clip_norm=1.0, noise_multiplier=2.0) for name in STATISTICS)
DIRECTION = np.arange(1.0, 10.0)
COMPARISON = Comparison(
    top=np.array([9, 8, 0, 2, 5, 7, 3, 1, 4]),
    weights=np.linspace(0.5, 1.5, 9),
    direction=DIRECTION / np.linalg.norm(DIRECTION),
    reach=3.0,
)
ASKS: dict[str, Arrays] = {"popularity": {}, "second_moments": arrays_of(COMPARISON)}


def place(
    tmp_path: Path,
    number: int = 7,
    *,
    mechanisms: tuple[Mechanism, ...] = ONCE,
    case: Case | None = None,
    budget: Budget = UNLIMITED,
    **plan: object,
) -> tuple[Path, World, dict[str, object]]:
    """Return the folder of a device of a plan with a start, its world, and the header of its asks."""
    _, plain, _ = world_of(case)
    asked = (*mechanisms, plain.plan.mechanism("rounds"))
    world, task, _ = world_of(case, **{"simulated": False, "mechanisms": asked, **plan})
    header = {"round": 0, "clip_norm": None, "task": task.digest()}
    return enrol_one(tmp_path, world, task, number, budget), world, header


def charges(folder: Path) -> list[str]:
    return [json.loads(line)["mechanism"] for line in (folder / "ledger.jsonl").read_text().splitlines()[1:]]


def told(folder: Path, header: dict[str, object], name: str) -> dict[str, np.ndarray]:
    return unpack(DeviceFolder(folder).answer(pack(ASKS[name], header | {"mechanism": name})), what="")[0]


@pytest.mark.parametrize("number", range(len(HISTORIES)))
def test_what_leaves_is_the_devices_contribution_and_nothing_else(number: int, tmp_path: Path) -> None:
    """Decoded, it is the contribution by its definition, to the rounding of one float32, and never above norm 1."""
    folder, _, header = place(tmp_path, number)
    history = np.array(HISTORIES[number], dtype=np.int64)
    expected = {
        "popularity": popularity(history, N_ITEMS),
        "second_moments": second_moments(history, COMPARISON),
    }
    for statistic in (Popularity(n_items=N_ITEMS), SecondMoments(comparison=COMPARISON)):
        sent = told(folder, header, statistic.name)
        assert {name: (a.shape, a.dtype) for name, a in sent.items()} == dict(statistic.schema)
        found = statistic.summed(statistic.decoded(sent))
        np.testing.assert_allclose(found, expected[statistic.name], rtol=0, atol=2e-7)
        assert np.linalg.norm(found) <= 1 + 1e-9
    assert charges(folder) == list(STATISTICS)


@pytest.mark.parametrize("name", STATISTICS)
def test_an_answer_is_as_long_whatever_the_history(name: str, tmp_path: Path) -> None:
    """Of no event, one, thirteen and 5,000."""
    answers = []
    for run, number in (("few", 0), ("few", 1), ("few", 7), ("many", 0)):
        folder, world, header = place(tmp_path / run, number)
        if run == "many":
            items = np.random.default_rng(1).integers(0, N_ITEMS, 5000)
            times, types = np.arange(5000), world.store.type_names
            many = EventStore.from_columns(
                users=np.zeros(5000, int), items=items, n_users=1, n_items=N_ITEMS, times=times, type_names=types
            )
            assert ingest_store(folder, many) == 5000
        answers.append(DeviceFolder(folder).answer(pack(ASKS[name], header | {"mechanism": name})))
    assert len({len(answer) for answer in answers}) == 1 and len(set(answers)) == len(answers)


@pytest.mark.parametrize("name", STATISTICS)
def test_the_same_ask_gets_the_same_bytes_and_one_charge(name: str, tmp_path: Path) -> None:
    folder, world, header = place(tmp_path, 0)
    ask = pack(ASKS[name], header | {"mechanism": name})
    first = DeviceFolder(folder).answer(ask)
    assert ingest_store(folder, world.store.only(7)) > 0
    assert DeviceFolder(folder).answer(ask) == first
    assert charges(folder) == [name]


def test_another_comparison_is_another_release_and_the_plan_has_one(tmp_path: Path) -> None:
    """A server that asked twice, with weights that single out a pair, would learn more than one release tells."""
    folder, _, header = place(tmp_path)
    told(folder, header, "second_moments")
    other = arrays_of(replace(COMPARISON, weights=COMPARISON.weights[::-1].copy()))
    with pytest.raises(BudgetExhausted, match="all taken"):
        DeviceFolder(folder).answer(pack(other, header | {"mechanism": "second_moments"}))
    assert charges(folder) == ["second_moments"]


def test_a_kill_between_charge_and_answer_keeps_the_charge_and_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, header = place(tmp_path)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedrecall.client.device.folder.write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            told(folder, header, "popularity")
    assert charges(folder) == ["popularity"] and not (folder / "state.safetensors").exists()
    with pytest.raises(BudgetExhausted):
        told(folder, header, "popularity")


def test_what_was_not_agreed_to_is_refused_uncharged(tmp_path: Path) -> None:
    folder, _, header = place(tmp_path)
    wide = {**ASKS["second_moments"], "direction": ASKS["second_moments"]["direction"] * 2}
    wrong = {
        "a mechanism of none": ({}, {"mechanism": "histories"}),
        "a mechanism of another kind": ({}, {"mechanism": ["popularity"]}),
        "another round": ({}, {"mechanism": "popularity", "round": 1}),
        "a round of another kind": ({}, {"mechanism": "popularity", "round": False}),
        "a clip norm": ({}, {"mechanism": "popularity", "clip_norm": 1.0}),
        "popularity with arrays": (ASKS["second_moments"], {"mechanism": "popularity"}),
        "second moments without": ({}, {"mechanism": "second_moments"}),
        "no unit direction": (wide, {"mechanism": "second_moments"}),
        "another task": ({}, {"mechanism": "popularity", "task": "0" * 64}),
    }
    for name, (arrays, changed) in wrong.items():
        with pytest.raises(PlanError):
            DeviceFolder(folder).answer(pack(arrays, header | changed))
        assert not charges(folder) and not (folder / "state.safetensors").exists(), name


def test_a_plan_without_the_mechanism_or_with_another_clip_is_refused(tmp_path: Path) -> None:
    """Noise is sized by the clip: with a clip of 0.1 the ledger would count a tenth of what is told."""
    folder, _, header = place(tmp_path, 0, mechanisms=())
    for name in STATISTICS:
        with pytest.raises(PlanError, match="no mechanism"):
            told(folder, header, name)
    assert not charges(folder)
    with pytest.raises(PlanError, match="clip_norm"):
        place(tmp_path, 1, mechanisms=tuple(replace(m, clip_norm=0.1) for m in ONCE))


@pytest.mark.parametrize("case", ["interaction, clipped", "interaction, clipped, central"])
def test_units_and_trusts_without_a_start_refuse(case: str, tmp_path: Path) -> None:
    folder, _, header = place(tmp_path, mechanisms=ONCE[:1], case=CASES[case])
    with pytest.raises(PlanError, match="simulations alone"):
        told(folder, header, "popularity")
    assert not charges(folder)


def test_a_spent_budget_refuses_and_nothing_leaves(tmp_path: Path) -> None:
    folder, _, header = place(tmp_path, budget=Budget(epsilon=1e-3, delta=1e-5))
    for name in STATISTICS:
        with pytest.raises(BudgetExhausted):
            told(folder, header, name)
    assert not charges(folder) and not (folder / "state.safetensors").exists()


def test_the_gate_holds_the_norm_itself() -> None:
    statistic = Popularity(n_items=N_ITEMS)
    codes = np.where(np.arange(N_ITEMS) < 4, 8, 0).astype(np.uint8)
    for scale, leaves in ((1 / 16, 1 / 16), ((1 + 1e-5) / 16, 0.0), (np.nan, 0.0), (-0.5, 0.0), (np.inf, 0.0)):
        arrays = {"popularity": codes, "scale": np.array(scale, dtype=np.float32)}
        sent = let_out_statistic(arrays, statistic=statistic, round=0, charge=lambda _: None).arrays
        assert float(sent["scale"]) == leaves and sent["popularity"].any() == bool(leaves)
        assert not any(array.flags.writeable for array in sent.values())


def test_nothing_but_the_statistics_arrays_passes_the_gate() -> None:
    good = {"popularity": np.zeros(N_ITEMS, dtype=np.uint8), "scale": np.zeros((), dtype=np.float32)}
    masked = np.ma.masked_array(np.zeros(N_ITEMS, dtype=np.uint8))
    charged: list[str] = []
    for changed in (
        {"user.private": np.zeros(N_ITEMS)},
        {"popularity": np.zeros(N_ITEMS + 1, dtype=np.uint8)},
        {"popularity": np.zeros(N_ITEMS, dtype=np.int64)},
        {"popularity": masked},
        {"scale": np.zeros((), dtype=np.float64)},
        {"scale": np.zeros(1, dtype=np.float32)},
    ):
        with pytest.raises(UpdateError):
            let_out_statistic(
                {**good, **changed}, statistic=Popularity(n_items=N_ITEMS), round=0, charge=charged.append
            )
    assert not charged
