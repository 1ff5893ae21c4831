"""One ledger over all jobs of a person: what one job spends, the others cannot."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedrecall.cli.app import call
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.client.device.home import HOME, PersonLedger, home_of, make_home, neighbours
from fedrecall.client.device.my_data import export_my_data, forget
from fedrecall.privacy.accounting.accounting import participation_mu
from fedrecall.privacy.accounting.budget import Budget, epsilon_of
from fedrecall.privacy.ledger.device_ledger import DeviceLedger
from fedrecall.protocol.errors import BudgetExhausted, CorruptArtefact, PlanError, UsageError
from fedrecall.protocol.records import Arrays
from fedrecall.protocol.task import Task
from fedrecall.protocol.tensors import pack

from ..training.engine_contract import World
from .small_devices import invitation_of, world_of

DELTA = 1e-5


def jobs(count: int) -> tuple[World, list[Task], Arrays]:
    """Return so many jobs in earnest, of three rounds each: other seeds, other tasks."""
    world, task, arrays = world_of()
    rounds = replace(task.plan.mechanism("rounds"), noise_multiplier=4.0, steps=3)
    plan = replace(task.plan, mechanisms=(rounds,), simulated=False)
    return world, [replace(task, plan=plan, seed=5 + job) for job in range(count)], arrays


def budget_of(task: Task, rounds: int) -> Budget:
    mu = participation_mu(task.plan, task.plan.mechanism("rounds"))
    return Budget(epsilon=epsilon_of(rounds * mu**2, DELTA), delta=DELTA, unit=task.plan.unit)


def folder(path: Path) -> Path:
    path.mkdir(mode=0o700, parents=True)
    return path


def answer(device: DeviceFolder, arrays: Arrays, round: int) -> bytes:
    task = device.task.digest()
    return device.answer(pack(arrays, {"round": round, "mechanism": "rounds", "clip_norm": None, "task": task}))


def test_two_jobs_of_one_person_share_one_budget(tmp_path: Path) -> None:
    world, tasks, arrays = jobs(2)
    home = folder(tmp_path / "home")
    make_home(home, budget_of(tasks[0], 3))
    devices = [
        DeviceFolder.enrol(folder(home / f"job-{n}"), invitation_of(world, task, n)) for n, task in enumerate(tasks)
    ]
    answer(devices[0], arrays, 0)
    answer(devices[1], arrays, 0)
    answer(devices[0], arrays, 1)
    for device in devices:
        with pytest.raises(BudgetExhausted, match="would bring what is spent"):
            answer(device, arrays, 2)
    ledger = DeviceLedger.open(home / "ledger.jsonl")
    assert [charge.task for charge in ledger.charges] == [tasks[n].digest() for n in (0, 1, 0)]
    assert not any((device.path / "ledger.jsonl").exists() for device in devices)


def test_outside_a_home_two_folders_spend_twice_and_are_named(tmp_path: Path) -> None:
    """What a home is for: each of two folders has the whole budget."""
    world, tasks, arrays = jobs(2)
    for n, task in enumerate(tasks):
        device = DeviceFolder.enrol(folder(tmp_path / f"job-{n}"), invitation_of(world, task, n), budget_of(task, 1))
        answer(device, arrays, 0)
    assert neighbours(tmp_path / "job-0") == [tmp_path / "job-1"]
    assert home_of(tmp_path / "job-0") is None


def test_a_home_that_is_gone_or_moved_fails_closed(tmp_path: Path) -> None:
    world, tasks, arrays = jobs(1)
    home = folder(tmp_path / "home")
    make_home(home, budget_of(tasks[0], 3))
    device = DeviceFolder.enrol(folder(home / "job"), invitation_of(world, tasks[0], 0))
    answer(device, arrays, 0)
    for name in ("ledger.jsonl", HOME):
        kept = (home / name).read_bytes()
        (home / name).unlink()
        with pytest.raises(CorruptArtefact):
            answer(DeviceFolder(home / "job"), arrays, 1)
        (home / name).write_bytes(kept)
    (home / "job").rename(folder(tmp_path / "elsewhere") / "job")
    with pytest.raises(CorruptArtefact):
        answer(DeviceFolder(tmp_path / "elsewhere" / "job"), arrays, 1)


def test_budgets_of_homes(tmp_path: Path) -> None:
    world, tasks, _ = jobs(1)
    home = folder(tmp_path / "home")
    with pytest.raises(UsageError, match="no home yet"):
        make_home(home)
    make_home(home, budget_of(tasks[0], 1))
    assert make_home(home, budget_of(tasks[0], 2)).budget == budget_of(tasks[0], 2)
    assert make_home(home).budget == budget_of(tasks[0], 2)
    with pytest.raises(PlanError, match="unit"):
        make_home(home, replace(budget_of(tasks[0], 1), unit="interaction"))
    with pytest.raises(UsageError, match="change it there"):
        DeviceFolder.enrol(folder(home / "job"), invitation_of(world, tasks[0], 0), budget_of(tasks[0], 1))
    alone = folder(tmp_path / "alone")
    DeviceFolder.enrol(alone, invitation_of(world, tasks[0], 0), budget_of(tasks[0], 1))
    with pytest.raises(UsageError, match="holds a device"):
        make_home(alone, budget_of(tasks[0], 1))
    alone.rename(home / "alone")
    with pytest.raises(UsageError, match="cannot be moved into a home"):
        DeviceFolder.enrol(home / "alone", invitation_of(world, tasks[0], 0))


def test_jobs_that_charge_at_the_same_moment_lose_no_charge_and_overspend_nothing(tmp_path: Path) -> None:
    world, tasks, _ = jobs(4)
    home = folder(tmp_path / "home")
    make_home(home, budget_of(tasks[0], 7))
    for n, task in enumerate(tasks):
        DeviceFolder.enrol(folder(home / f"job-{n}"), invitation_of(world, task, 0))

    def spend(n: int) -> int:
        ledger, done = PersonLedger(home / f"job-{n}", tasks[n].digest()), 0
        for round in range(3):
            with contextlib.suppress(BudgetExhausted):
                done += ledger.charge(tasks[n].plan, "rounds", round, f"{n}-{round}", datetime.now(UTC))
        return done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(spend, range(4))) == 7
    assert len(DeviceLedger.open(home / "ledger.jsonl").charges) == 7


def test_what_a_device_in_a_home_hands_out_and_forgets(tmp_path: Path) -> None:
    world, tasks, arrays = jobs(1)
    home = folder(tmp_path / "home")
    make_home(home, budget_of(tasks[0], 3))
    device = DeviceFolder.enrol(folder(home / "job"), invitation_of(world, tasks[0], 0))
    answer(device, arrays, 0)
    assert "ledger.jsonl" in export_my_data(home / "job", tmp_path / "mine.zip")["members"]
    forget(home / "job")
    assert len(DeviceLedger.open(home / "ledger.jsonl").charges) == 1


def test_the_command_makes_a_home_and_shows_what_all_jobs_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, tasks, arrays = jobs(1)
    home = tmp_path / "home"
    assert call(["device", "home", str(home)]) == 2
    assert call(["device", "home", str(home), "--epsilon", "8", "--delta", "1e-5"]) == 0
    assert "home/JOB" in capsys.readouterr().out
    device = DeviceFolder.enrol(folder(home / "job"), invitation_of(world, tasks[0], 0))
    answer(device, arrays, 0)
    for path in (home, home / "job"):
        assert call(["device", "ledger", str(path), "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["plans"][0]["times"] == 1


def spent_rounds(device: DeviceFolder, arrays: Arrays, first: int = 0) -> int:
    """How many of three asks a device answers."""
    done = 0
    for round in range(first, first + 3):
        with contextlib.suppress(BudgetExhausted, PlanError):
            answer(device, arrays, round)
            done += 1
    return done


@pytest.mark.parametrize("where", ["job", "group/job", "group/deep/job", "link"])
def test_a_home_counts_what_lies_in_it_however_deep_and_by_whatever_name(where: str, tmp_path: Path) -> None:
    world, tasks, arrays = jobs(2)
    home = folder(tmp_path / "home")
    make_home(home, budget_of(tasks[0], 2))
    if where == "link":
        folder(home / "job")
        (tmp_path / "link").symlink_to(home / "job")
        path = tmp_path / "link"
    else:
        path = folder(home / where)
    assert home_of(path) == home
    assert spent_rounds(DeviceFolder.enrol(path, invitation_of(world, tasks[0], 0)), arrays) == 2
    other = DeviceFolder.enrol(folder(home / "other"), invitation_of(world, tasks[1], 1))
    assert spent_rounds(other, arrays) == 0


def test_homes_that_would_count_a_budget_twice_are_refused(tmp_path: Path) -> None:
    world, tasks, arrays = jobs(2)
    home = folder(tmp_path / "home")
    make_home(home, budget_of(tasks[0], 2))
    with pytest.raises(UsageError, match="counts for all jobs"):
        make_home(folder(home / "inner"), budget_of(tasks[0], 2))
    top = folder(tmp_path / "top")
    alone = DeviceFolder.enrol(folder(top / "job"), invitation_of(world, tasks[0], 0), budget_of(tasks[0], 2))
    assert spent_rounds(alone, arrays) == 2
    with pytest.raises(UsageError, match="ledger of its own"):
        make_home(tmp_path / "top", budget_of(tasks[0], 2))
    # Moved into a home by hand: it answers nothing more.
    (tmp_path / "top" / "job").rename(home / "job")
    with pytest.raises(UsageError, match="ledger of its own"):
        answer(DeviceFolder(home / "job"), arrays, 2)


@pytest.mark.parametrize(
    "lost", [["home.json"], ["ledger.jsonl"], ["ledger.jsonl.head"], ["ledger.jsonl", "ledger.jsonl.head"]]
)
def test_a_home_that_lost_a_file_spends_nothing_more(lost: list[str], tmp_path: Path) -> None:
    world, tasks, arrays = jobs(2)
    home = folder(tmp_path / "home")
    make_home(home, budget_of(tasks[0], 2))
    device = DeviceFolder.enrol(folder(home / "job"), invitation_of(world, tasks[0], 0))
    assert spent_rounds(device, arrays) == 2
    for name in lost:
        (home / name).unlink()
    with pytest.raises(CorruptArtefact):
        answer(device, arrays, 2)
    if "home.json" in lost:
        with pytest.raises(CorruptArtefact):
            DeviceFolder.enrol(folder(home / "new"), invitation_of(world, tasks[1], 1), budget_of(tasks[1], 2))


def test_a_ledger_cut_short_without_its_head_spends_nothing_more(tmp_path: Path) -> None:
    world, tasks, arrays = jobs(1)
    alone = DeviceFolder.enrol(folder(tmp_path / "job"), invitation_of(world, tasks[0], 0), budget_of(tasks[0], 2))
    assert spent_rounds(alone, arrays) == 2
    ledger = alone.path / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().splitlines(keepends=True)[0])
    (alone.path / "ledger.jsonl.head").unlink()
    with pytest.raises(CorruptArtefact):
        answer(alone, arrays, 2)
