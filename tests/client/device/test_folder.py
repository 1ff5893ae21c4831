"""A device's folder: it answers what it agreed to, once, and keeps what it must over a kill."""

import json
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrecall.client.device.enrolment import EVENTS
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.client.events.database import EventDatabase
from fedrecall.client.events.store import EventStore
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.privacy.ledger.device_ledger import DeviceLedger
from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact, DataError, FedrecallError, PlanError, UsageError
from fedrecall.protocol.tensors import pack, unpack

from ..training.engine_contract import CASES, Case, make_world
from .small_devices import UNLIMITED, enrol_one, ingest_store, invitation_of, world_of

USER = 7


def device(tmp_path: Path, case: Case | None = None, budget: Budget | None = None, **plan: object):
    world, task, arrays = world_of(case, **plan)
    folder = enrol_one(tmp_path, world, task, USER, budget or UNLIMITED)
    header = {"round": 0, "mechanism": "rounds", "clip_norm": task.plan.mechanism("rounds").clip_norm}
    return folder, arrays, header | {"task": task.digest()}


def charges(folder: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (folder / "ledger.jsonl").read_text().splitlines()[1:]]


@pytest.mark.parametrize("simulated", [True, False])
def test_the_same_ask_gets_the_same_bytes_and_one_charge(simulated: bool, tmp_path: Path) -> None:
    folder, arrays, header = device(tmp_path, simulated=simulated)
    first = DeviceFolder(folder).answer(pack(arrays, header))
    assert DeviceFolder(folder).answer(pack(arrays, header)) == first
    assert charges(folder) == [0]
    moved = {**arrays, "transformer.out.bias": arrays["transformer.out.bias"] + 1}
    other = DeviceFolder(folder).answer(pack(moved, header))
    assert unpack(other, what="")[1]["nonce"] != unpack(first, what="")[1]["nonce"]
    assert charges(folder) == ([0] if simulated else [0, 0]), "in earnest a second answer is a second charge"


def test_the_tower_moves_once_a_round_and_stays_in_the_folder(tmp_path: Path) -> None:
    folder, arrays, header = device(tmp_path, CASES["user, one step, clipped, towers"])
    towers = []
    for round in (0, 0, 1):
        DeviceFolder(folder).answer(pack(arrays, header | {"round": round}))
        towers.append(unpack((folder / "state.safetensors").read_bytes(), what="")[0])
    private = [name for name in towers[0] if name.startswith("user.")]
    assert private
    for name in private:
        np.testing.assert_array_equal(towers[0][name], towers[1][name])
    assert any((towers[1][name] != towers[2][name]).any() for name in private)
    sent, _ = unpack(DeviceFolder(folder).answer(pack(arrays, header | {"round": 2})), what="")
    assert not [name for name in sent if name.startswith("user.")]


def test_what_was_not_agreed_to_is_refused_uncharged(tmp_path: Path) -> None:
    folder, arrays, header = device(tmp_path)
    small = {**arrays, "item.id.weight": arrays["item.id.weight"][:-1]}
    wrong = {
        "another task": (arrays, header | {"task": "0" * 64}),
        "another mechanism": (arrays, header | {"mechanism": "popularity"}),
        "more in the header": (arrays, header | {"world": "/etc"}),
        "no round": (arrays, header | {"round": -1}),
        "round of another kind": (arrays, header | {"round": True}),
        "clip norm of another kind": (arrays, header | {"clip_norm": "1"}),
        "another shape": (small, header),
        "another dtype": ({n: a.astype(np.float64) for n, a in arrays.items()}, header),
        "the tower asked for": ({**arrays, "user.private": np.zeros(2, np.float32)}, header),
        "too long": ({**arrays, "item.more": np.zeros(200_000, np.float32)}, header),
    }
    for name, ask in wrong.items():
        with pytest.raises(PlanError, match="bytes" if name == "too long" else None):
            DeviceFolder(folder).answer(pack(*ask))
        assert not charges(folder) and not (folder / "state.safetensors").exists(), name
    with pytest.raises(CorruptArtefact):
        DeviceFolder(folder).answer(b"\x80\x04.")


def test_a_larger_clip_norm_in_the_ask_changes_nothing(tmp_path: Path) -> None:
    """With a fixed clip the device keeps its plan's: no server can ask for more of it."""
    folder, arrays, header = device(tmp_path)
    norms = []
    for number, clip in enumerate((0.3, 1e9, None)):
        sent, _ = unpack(
            DeviceFolder(folder).answer(pack(arrays, header | {"round": number, "clip_norm": clip})), what=""
        )
        norms.append(np.sqrt(sum(float((a.astype(np.float64) ** 2).sum()) for a in sent.values())))
    assert max(norms) <= 0.3 * (1 + 1e-6) and min(norms) > 0.29


def test_a_spent_budget_refuses_and_nothing_leaves(tmp_path: Path) -> None:
    budget = Budget(epsilon=1e-3, delta=1e-5)
    folder, arrays, header = device(tmp_path, budget=budget, simulated=False)
    with pytest.raises(BudgetExhausted):
        DeviceFolder(folder).answer(pack(arrays, header))
    assert not charges(folder) and not (folder / "state.safetensors").exists()


def test_a_kill_between_charge_and_answer_leaves_a_ledger_that_counts_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, arrays, header = device(tmp_path, simulated=False)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fedrecall.client.device.folder.write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            DeviceFolder(folder).answer(pack(arrays, header))
    assert charges(folder) == [0]
    DeviceFolder(folder).answer(pack(arrays, header))
    assert charges(folder) == [0, 0]


def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    folder, _, _ = device(tmp_path)
    for mode in (0o750, 0o705, 0o711):
        folder.chmod(mode)
        with pytest.raises(DataError, match="chmod 700"):
            DeviceFolder(folder)
    with pytest.raises(DataError):
        DeviceFolder(tmp_path / "nobody")


def test_a_folder_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    folder, arrays, header = device(tmp_path)
    text = (folder / "ledger.jsonl").read_bytes()
    (folder / "ledger.jsonl").write_bytes(text.replace(b'"never"', b'"weeks"'))
    with pytest.raises(FedrecallError):
        DeviceFolder(folder).answer(pack(arrays, header))
    (folder / "enrolment.json").write_text("{}")
    with pytest.raises(CorruptArtefact):
        DeviceFolder(folder)


def test_another_plan_is_another_task() -> None:
    _, task, _ = world_of()
    noisier = replace(task.plan, delta=2e-5)
    assert replace(task, plan=noisier).digest() != task.digest()
    assert type(task).from_dict(json.loads(json.dumps(task.to_dict()))).digest() == task.digest()
    with pytest.raises(PlanError):
        type(task).from_dict({"plan": {}})


def test_events_that_came_between_rounds_count_in_the_next_ask_and_in_no_repeated_one(tmp_path: Path) -> None:
    folder, arrays, header = device(tmp_path, CASES["no features, types, weights or times"])
    before = [DeviceFolder(folder).answer(pack(arrays, header | {"round": round})) for round in (0, 1)]
    with EventDatabase(folder / EVENTS) as database:
        stored = len(list(database.events()))
        new = replace(
            make_world(CASES["no features, types, weights or times"]).store.only(USER), items=np.full(stored, 6)
        )
        assert ingest_store(folder, new) == stored
    assert DeviceFolder(folder).history().items.tolist()[stored:] == [6] * stored
    assert DeviceFolder(folder).answer(pack(arrays, header | {"round": 1})) == before[1], (
        "a repeated ask, the same bytes"
    )
    assert charges(folder) == [0, 1]
    fresh = unpack(DeviceFolder(folder).answer(pack(arrays, header | {"round": 0})), what="")[0]
    old = unpack(before[0], what="")[0]
    assert any((fresh[name] != old[name]).any() for name in old)


def test_an_update_is_as_long_whatever_the_history(tmp_path: Path) -> None:
    """Of no event, one, thirteen and 5,000: the bytes that leave differ in value alone, never in number."""
    world, task, arrays = world_of(simulated=False)
    header = {"round": 0, "mechanism": "rounds", "clip_norm": 0.3, "task": task.digest()}
    folders = {number: enrol_one(tmp_path, world, task, number) for number in (0, 1, 2, USER)}
    many = 5000
    long = EventStore.from_columns(
        users=np.zeros(many, int),
        items=np.arange(many) % 12,
        n_users=1,
        n_items=12,
        times=np.arange(many),
        types=np.zeros(many, int),
        type_names=world.store.type_names,
    )
    assert ingest_store(folders[0], long) == many
    answers = [DeviceFolder(folder).answer(pack(arrays, header)) for folder in folders.values()]
    assert len({len(answer) for answer in answers}) == 1 and len(set(answers)) == len(answers)
    assert len({(folder / "state.safetensors").stat().st_size for folder in folders.values()}) == 1


def test_enrolling_again_changes_nothing_but_the_way_to_the_server(tmp_path: Path) -> None:
    world, task, arrays = world_of(simulated=False)
    folder = enrol_one(tmp_path, world, task, USER)
    header = {"round": 0, "mechanism": "rounds", "clip_norm": 0.3, "task": task.digest()}
    sent = DeviceFolder(folder).answer(pack(arrays, header))
    same = invitation_of(world, task, USER)
    moved = replace(same, address="localhost:1", release="elsewhere")
    for invitation in (same, moved):
        assert DeviceFolder.enrol(folder, invitation).invitation.address == invitation.address
        assert DeviceFolder(folder).answer(pack(arrays, header)) == sent and charges(folder) == [0]


def test_another_agreement_needs_a_word_and_keeps_the_ledger(tmp_path: Path) -> None:
    world, task, arrays = world_of(simulated=False)
    folder = enrol_one(tmp_path, world, task, USER)
    header = {"round": 0, "mechanism": "rounds", "clip_norm": 0.3, "task": task.digest()}
    DeviceFolder(folder).answer(pack(arrays, header))
    agreed = invitation_of(world, task, USER)
    swapped = (agreed.items[1], agreed.items[0], *agreed.items[2:])
    turned = dict(reversed(agreed.event_weights.items()))
    other = replace(task, seed=6)
    for changed in (
        invitation_of(world, task, 1),
        invitation_of(world, other, USER),
        replace(agreed, items=swapped),
        replace(agreed, event_weights=turned),
        replace(agreed, features=agreed.features + 1),
    ):
        with pytest.raises(UsageError, match="replaced"):
            DeviceFolder.enrol(folder, changed)
        assert DeviceFolder(folder).invitation.to_dict() == agreed.to_dict() and (folder / "state.safetensors").exists()
    found = DeviceFolder.enrol(folder, invitation_of(world, other, 1), replace=True)
    assert (found.number, found.task.digest()) == (1, other.digest())
    assert charges(folder) == [0] and not (folder / "state.safetensors").exists()
    assert found.history().n_events == world.store.only(USER).n_events


def test_a_budget_is_needed_once_and_a_changed_one_is_recorded(tmp_path: Path) -> None:
    world, task, _ = world_of(simulated=False)
    tmp_path.chmod(0o700)
    invitation = invitation_of(world, task, 0)
    with pytest.raises(UsageError, match="epsilon"):
        DeviceFolder.enrol(tmp_path, invitation)
    assert not (tmp_path / "enrolment.json").exists()
    for budget in (Budget(epsilon=1.0, delta=1e-5), None, Budget(epsilon=1.0, delta=1e-5)):
        DeviceFolder.enrol(tmp_path, invitation, budget)
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1
    DeviceFolder.enrol(tmp_path, invitation, Budget(epsilon=2.0, delta=1e-5))
    assert DeviceLedger.open(tmp_path / "ledger.jsonl").budget.epsilon == 2.0


@pytest.mark.parametrize("lost", [["ledger.jsonl"], ["ledger.jsonl.head"], ["ledger.jsonl", "ledger.jsonl.head"]])
def test_a_ledger_that_is_gone_is_missed_and_never_begun_anew(lost: list[str], tmp_path: Path) -> None:
    world, task, arrays = world_of(simulated=False)
    folder = enrol_one(tmp_path, world, task, USER)
    header = {"round": 0, "mechanism": "rounds", "clip_norm": 0.3, "task": task.digest()}
    DeviceFolder(folder).answer(pack(arrays, header))
    for name in lost:
        (folder / name).unlink()
    with pytest.raises(CorruptArtefact):
        DeviceFolder.enrol(folder, invitation_of(world, task, USER), Budget(epsilon=9.0, delta=1e-5))
    with pytest.raises(CorruptArtefact):
        DeviceFolder(folder).answer(pack(arrays, header | {"round": 1}))


def test_work_that_is_not_known_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    world, task, _ = world_of()
    tmp_path.chmod(0o700)
    strange = replace(task, local=dict(task.local) | {"upload": "everything"})
    with pytest.raises(PlanError, match="update it"):
        DeviceFolder.enrol(tmp_path, invitation_of(world, strange, 0), Budget(epsilon=1.0, delta=1e-5))
    assert list(tmp_path.iterdir()) == []


def test_every_file_of_a_device_is_for_its_user_alone(tmp_path: Path) -> None:
    folder, arrays, header = device(tmp_path)
    DeviceFolder(folder).answer(pack(arrays, header))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert set(modes) == {
        *("enrolment.json", "events.sqlite", "ledger.jsonl", "ledger.jsonl.head", ".ledger.lock", "state.safetensors")
    }
    assert set(modes.values()) == {0o600}


def test_a_plan_of_another_unit_than_the_ledgers_budget_is_declined(tmp_path: Path) -> None:
    world, task, _ = world_of(simulated=False)
    folder = enrol_one(tmp_path, world, task, USER, Budget(epsilon=1.0, delta=1e-5))
    _, other, _ = world_of(CASES["interaction, clipped"], simulated=False)
    for budget in (None, Budget(epsilon=1.0, delta=1e-5, unit="interaction")):
        with pytest.raises(PlanError, match="unit"):
            DeviceFolder.enrol(folder, invitation_of(world, other, USER), budget, replace=True)
        assert DeviceFolder(folder).task.digest() == task.digest()
