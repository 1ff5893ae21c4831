"""`fedrecall device`: a whole life of a device by commands, and how each thing that can be wrong ends."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fedrecall
from fedrecall.cli.app import call
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.jsontext import dumps
from fedrecall.protocol.lock import only_one
from fedrecall.protocol.plan import Mechanism
from fedrecall.protocol.tensors import pack
from fedrecall.server.recall.release import write_release

from ..client.device.small_devices import invitation_of, world_of
from ..house import ROOT

NOISY = (Mechanism(name="rounds", clip_norm=0.3, noise_multiplier=5.0, steps=9),)
EVENTS = "".join(f'{{"item": "i{n}", "time": {n}, "type": "view"}}\n' for n in range(6))
BUDGET = ("--epsilon", "2", "--delta", "1e-5")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with an invitation, one that is simulated, events, and a release."""
    world, task, arrays = world_of(simulated=False, mechanisms=NOISY)
    invitation_of(world, task, 3).save(tmp_path / "invitation.json")
    invitation_of(world, task, 4).save(tmp_path / "other.json")
    pretended = replace(task, plan=replace(task.plan, simulated=True))
    invitation_of(world, pretended, 3).save(tmp_path / "simulated.json")
    (tmp_path / "events.jsonl").write_text(EVENTS)
    items = ItemTable.from_vectors(arrays["item.id.weight"], tuple(f"i{n}" for n in range(12)))
    about = {"round": 2, "ledger_head": None, "simulated": False}
    write_release(tmp_path / "release", model=arrays, items=items, plan_digest=task.plan.digest(), **about)
    write_release(tmp_path / "foreign", model=arrays, items=items, plan_digest="0" * 64, **about)
    return tmp_path


def answer(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """Run a command that must succeed; return its one line of JSON."""
    code = call(["device", *map(str, arguments), "--format", "json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    assert out.count("\n") == 1
    found: dict[str, Any] = json.loads(out, parse_constant=pytest.fail)
    return found


def enrolled(capsys: pytest.CaptureFixture[str], place: Path) -> Path:
    answer(capsys, "init", place / "device", "--invitation", place / "invitation.json", *BUDGET)
    return place / "device"


def test_a_life_of_a_device(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = place / "device"
    first = answer(capsys, "init", device)
    assert first == {"folder": str(device), "public_key": f"{device}/node.key.pub", "enrolled": False}
    assert stat.S_IMODE(device.stat().st_mode) == 0o700
    key = Path(first["public_key"]).read_text()
    for again in ((), BUDGET):
        told = answer(capsys, "init", device, "--invitation", place / "invitation.json", *(again or BUDGET))
        assert (told["number"], told["enrolled"], told["server"]) == (3, True, "127.0.0.1:9092")
        assert {row["name"]: row["epsilon"] is None for row in told["adversaries"]}["server"]
        assert told["costs"]["rounds_that_fit"] == 6 and told["budget"]["epsilon"] == 2.0
    assert Path(first["public_key"]).read_text() == key, "one key for its whole life"
    columns = ("--time", "time", "--event", "type")
    counts = [answer(capsys, "ingest", device, place / "events.jsonl", *columns)["added"] for _ in range(2)]
    assert counts == [6, 0]
    for release in (place / "release", place / "release" / "items.safetensors"):
        found = answer(capsys, "recommend", device, "--release", release, "--k", "4")
        assert found["round"] == 2 and len(found["items"]) == 4
        assert not {item["item"] for item in found["items"]} & {f"i{n}" for n in range(6)}
    asked = DeviceFolder(device)
    _, _, arrays = world_of(simulated=False, mechanisms=NOISY)
    asked.answer(pack(arrays, {"round": 0, "mechanism": "rounds", "clip_norm": 0.3, "task": asked.task.digest()}))
    said = answer(capsys, "ledger", device)
    assert said["plans"][0]["times"] == 1 and 0 < said["spent"]["ever"] < 2 and said["plans"][0]["enrolled"]
    mine = answer(capsys, "export-my-data", device, "--out", place / "mine.zip")
    assert mine["events"] == 6 and stat.S_IMODE((place / "mine.zip").stat().st_mode) == 0o600
    gone = answer(capsys, "forget", device, "--yes")
    assert gone["kept"] == ["ledger.jsonl", "ledger.jsonl.head"] and len(gone["cannot_be_taken_back"]) == 4
    assert answer(capsys, "ledger", device)["spent"]["ever"] == said["spent"]["ever"]
    assert answer(capsys, "init", device, "--invitation", place / "invitation.json")["budget"]["epsilon"] == 2.0
    assert answer(capsys, "ledger", device)["spent"]["ever"] == said["spent"]["ever"], "what is spent stays spent"


def test_a_program_opens_a_device_and_gets_what_the_commands_say(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = fedrecall.Device(enrolled(capsys, place))
    assert device.number == 3
    report = device.ingest(place / "events.jsonl", time="time", event="type")
    assert report["added"] == 6
    columns = ("--time", "time", "--event", "type")
    assert answer(capsys, "ingest", device.folder, place / "events.jsonl", *columns) == report | {"added": 0}
    said = answer(capsys, "recommend", device.folder, "--release", place / "release", "--k", "4")
    assert device.recommend(place / "release", 4) == said["items"]
    assert device.recommend(place / "release" / "items.safetensors", 4) == said["items"]
    assert json.loads(dumps(device.ledger())) == answer(capsys, "ledger", device.folder)
    with pytest.raises(UsageError, match="another plan"):
        device.recommend(place / "foreign")
    (place / "empty").mkdir(mode=0o700)
    with pytest.raises(UsageError, match="no device"):
        fedrecall.Device(place / "empty")


def test_a_program_reads_the_ledger_that_counts_a_device_its_home_s(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "home", place / "me", *BUDGET)
    answer(capsys, "init", place / "me" / "shop", "--invitation", place / "invitation.json")
    device = fedrecall.Device(place / "me" / "shop")
    assert not (device.folder / "ledger.jsonl").exists()
    assert json.loads(dumps(device.ledger())) == answer(capsys, "ledger", device.folder)


def test_texts_for_people_say_what_to_do_next(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = place / "device"
    assert call(["device", "init", str(device)]) == 0
    assert "node.key.pub" in capsys.readouterr().out
    assert call(["device", "init", str(device), "--invitation", str(place / "invitation.json"), *BUDGET]) == 0
    assert f"fedrecall device join {device}" in capsys.readouterr().out
    assert (
        call(["device", "ingest", str(device), str(place / "events.jsonl"), "--time", "time", "--event", "type"]) == 0
    )
    for command in (
        ["recommend", str(device), "--release", str(place / "release")],
        ["ledger", str(device)],
        ["export-my-data", str(device), "--out", str(place / "mine.zip")],
        ["forget", str(device), "--yes"],
    ):
        assert call(["device", *command]) == 0, command
    assert "cannot be called back" in capsys.readouterr().out


WRONG: dict[str, tuple[int, list[str]]] = {
    "an epsilon without a delta": (2, ["init", "new", "--invitation", "invitation.json", "--epsilon", "1"]),
    "no budget": (2, ["init", "new", "--invitation", "invitation.json"]),
    "a budget that is none": (
        2,
        ["init", "new", "--invitation", "invitation.json", "--epsilon", "0", "--delta", "0.1"],
    ),
    "a simulated plan": (2, ["init", "new", "--invitation", "simulated.json", *BUDGET]),
    "no invitation": (6, ["init", "new", "--invitation", "nowhere.json", *BUDGET]),
    "what is no invitation": (6, ["init", "new", "--invitation", "events.jsonl", *BUDGET]),
    "another number": (2, ["init", "device", "--invitation", "other.json"]),
    "an open folder": (2, ["init", "."]),
    "a file for a folder": (2, ["init", "events.jsonl"]),
    "a folder of nobody": (2, ["ledger", "empty"]),
    "a folder that is not there": (2, ["recommend", "nowhere", "--release", "release"]),
    "an ingest before enrolment": (2, ["ingest", "empty", "events.jsonl"]),
    "a file that is not there": (2, ["ingest", "device", "nowhere.csv", "--event", "type"]),
    "types that are not told apart": (2, ["ingest", "device", "events.jsonl"]),
    "no file at all": (2, ["ingest", "device"]),
    "stdin twice": (2, ["ingest", "device", "-", "-"]),
    "a release of others": (2, ["recommend", "device", "--release", "foreign"]),
    "a release that is not there": (6, ["recommend", "device", "--release", "nowhere"]),
    "no item": (2, ["recommend", "device", "--release", "release", "--k", "0"]),
    "forgetting without a yes": (2, ["forget", "device"]),
    "forgetting nobody": (2, ["forget", "empty", "--yes"]),
    "an export onto a file": (2, ["export-my-data", "device", "--out", "events.jsonl"]),
    "an export of nobody": (2, ["export-my-data", "empty", "--out", "new.zip"]),
}


@pytest.fixture
def where(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    enrolled(capsys, place)
    (place / "empty").mkdir(mode=0o700)
    place.chmod(0o755)
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_ends_with_its_exit_code_and_one_line(
    name: str, where: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, arguments = WRONG[name]
    assert call(["device", *arguments]) == code, capsys.readouterr()
    out, err = capsys.readouterr()
    assert not out and err and "Traceback" not in err
    assert (where / "device" / "events.sqlite").exists() and (where / "device" / "node.key").exists()


@pytest.mark.parametrize("file", ["ledger.jsonl", "enrolment.json", "events.sqlite"])
def test_a_file_that_was_altered_ends_with_6(file: str, where: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (where / "device" / file).write_bytes(b"{}" * 600)
    command = ["ledger", "device"] if file == "ledger.jsonl" else ["recommend", "device", "--release", "release"]
    assert call(["device", *command]) == 6


def test_an_altered_release_ends_with_6(where: Path) -> None:
    data = bytearray((where / "release" / "items.safetensors").read_bytes())
    data[-1] ^= 1
    (where / "release" / "items.safetensors").write_bytes(data)
    assert call(["device", "recommend", "device", "--release", "release"]) == 6


def test_a_device_that_takes_part_is_not_started_enrolled_or_forgotten_again(
    where: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_one(where / "device" / "join.lock", "busy"):
        assert call(["device", "join", "device"]) == 3
        assert "takes part already" in capsys.readouterr().err
        assert call(["device", "init", "device", "--invitation", "invitation.json"]) == 3
        assert call(["device", "forget", "device", "--yes"]) == 3
    assert (where / "device" / "enrolment.json").exists()


def test_events_come_from_stdin_too(where: Path) -> None:
    command = [sys.executable, "-m", "fedrecall.cli", "device", "ingest", str(where / "device"), "-", "--time", "time"]
    done = subprocess.run(
        [*command, "--event", "type", "--format", "json"],
        input=EVENTS,
        text=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["added"] == 6 and not list((where / "device").glob(".stdin*"))
