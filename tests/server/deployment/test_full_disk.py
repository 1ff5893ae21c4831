"""A server whose disk is full: the system itself refuses the writes, at every file that a deployed job writes.

Every update moves every weight by the same step, and there is no noise: a model tells how many rounds were applied.
"""

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from fedrecall.cli.app import call
from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.records import Arrays, Update
from fedrecall.protocol.tensors import pack, unpack
from fedrecall.server.deployment.app import main
from fedrecall.server.deployment.job import Job
from fedrecall.server.deployment.pace import read_progress
from fedrecall.server.deployment.publish import found
from fedrecall.server.deployment.roster import Roster
from fedrecall.server.operation.up import is_finished
from fedrecall.server.recall.release import load_release
from fedrecall.server.training.checkpoint import load_latest, rounds_done

from ...small_disks import apart, empty, leave, limit_files, on_a_disk
from .flower_nodes import Node, flower
from .small_jobs import ROUNDS, arrays, job_in, publisher
from .test_roster import public_key

STEPS, DEVICES, STEP, PAGE = 6, 4, 0.25, 4096
OPEN = replace(ROUNDS, noise_multiplier=0.0, steps=STEPS)
Life = dict[str, Any]
"""What one life of the rounds came to: the rounds that were asked for, the error that ended it, its exit code."""


def update(round: int) -> Update:
    moved = {name: np.full_like(array, STEP) for name, array in arrays().items()}
    return Update(round=round, nonce=secrets.token_hex(8), arrays=moved)


def lived(work: Callable[[list[int]], object]) -> Life:
    asked: list[int] = []
    try:
        work(asked)
    except FedrecallError as error:
        return {"asked": asked, "error": str(error), "code": error.exit_code}
    return {"asked": asked, "error": "", "code": 0}


def run_job(folder: Path) -> Life:
    """Run the rounds without their pace, which looks for room: as if something else took it in the last moment."""

    def work(asked: list[int]) -> None:
        def collect(round: int, given: Arrays, cohort: np.ndarray, clip: float | None) -> Iterator[Update]:
            asked.append(round)
            yield from (update(round) for _ in cohort)

        Job.load(folder).run(collect, Counter(), publisher(folder, keep=STEPS))

    return lived(work)


def nothing() -> None:
    """Take no room."""


def run_app(folder: Path, before: Callable[[], object] = nothing, while_asked: Callable[[], object] = nothing) -> Life:
    """Run the server's app over Flower's grid; ``before`` it starts, and ``while_asked``, room may be taken."""

    def work(asked: list[int]) -> None:
        with flower([answering(asked, while_asked)] * DEVICES) as grid:
            roster = Roster(folder, devices=DEVICES)
            for number, node in enumerate(sorted(grid.get_node_ids())):
                roster.registered(number, node)
            context = Context(run_id=77, node_id=0, node_config={}, state=RecordDict(), run_config={"job": str(folder)})
            before()
            main(grid, context)

    return lived(work)


def answering(asked: list[int], starve: Callable[[], object]) -> Node:
    def node(message: Message, context: Context) -> Message:
        starve()
        _, header = unpack(message.content.array_records["ask"]["packed"].data, what="ask")
        asked.append(header["round"])
        made = update(header["round"])
        data = pack(made.arrays, {"round": made.round, "nonce": made.nonce})
        record = ArrayRecord({"packed": Array("uint8", (len(data),), "safetensors", data)})
        return Message(RecordDict({"update": record}), reply_to=message)

    return node


def deployment_without_keys(folder: Path) -> None:
    job_in(folder, OPEN, deadline_s=20.0)


def deployment(folder: Path) -> None:
    deployment_without_keys(folder)
    for _ in range(DEVICES):
        Roster(folder, devices=DEVICES).enrol(public_key())


def charged(folder: Path) -> list[int]:
    """Return the rounds that the ledger was charged for; a torn line is no charge."""
    path = folder / "ledger.jsonl"
    lines = path.read_bytes().split(b"\n")[1:-1] if path.exists() else []
    return [json.loads(line)["round"] for line in lines]


def check_whole(folder: Path) -> list[float]:
    """Check what lies on the disk as whoever reads it next would; return how far each release moved from the start.

    Every release is one whole file set; no round is charged twice, applied twice, or released without its charge.
    """
    rounds = charged(folder)
    assert rounds == sorted(set(rounds))
    saved = load_latest(folder / "checkpoints")
    if saved is not None:
        assert saved.round <= STEPS and set(range(saved.round)) <= set(rounds)
    moved = []
    for round in sorted(found(folder)):
        model = load_release(folder / "releases" / f"{round:06d}").model
        steps = {float((model[name] - array).mean()) / STEP for name, array in arrays().items()}
        assert max(steps) - min(steps) < 1e-6 and round - 1 in rounds
        moved.append(abs(max(steps)))
    apart = np.diff(moved)
    assert np.all(np.isclose(apart, 0) | np.isclose(apart, 1)), moved
    assert not moved or moved[0] < 1e-6 + min(found(folder)), moved
    return moved


def starved_then_fed(folder: Path, starved: Callable[[], Life], fed: Callable[[], Life]) -> list[Life]:
    """Live three times without room, then with it; check the disk after every life. Returns the three lives."""
    lives = []
    for _ in range(3):
        lives.append(starved() | {"charged": charged(folder)})
        check_whole(folder)
    last = fed()
    moved = check_whole(folder)
    assert (last["code"], last["error"]) == (0, ""), last
    assert charged(folder) == list(range(STEPS)) and max(found(folder)) == STEPS
    # A life that ends between charge and checkpoint loses that round; the others are each applied once.
    lost = STEPS - round(moved[-1])
    assert 0 <= lost <= sum(bool(life["error"]) for life in lives)
    return lives


def sizes_of(folder: Path) -> list[int]:
    """Return the distinct sizes of all files that a whole job leaves, and of the ledger after each of its rounds."""
    before = set(folder.rglob("*"))
    assert run_job(folder)["code"] == 0
    sizes = {path.stat().st_size for path in set(folder.rglob("*")) - before if path.is_file()}
    lines = (folder / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    return sorted(sizes | {sum(map(len, lines[:count])) for count in range(1, len(lines) + 1)})


def test_one_byte_too_few_for_any_file_loses_no_charge_and_applies_no_round_twice(tmp_path: Path) -> None:
    """EFBIG: of each file that the job writes one byte is refused, and so is every larger file."""
    deployment(tmp_path / "whole")
    refused = set()
    for size in sizes_of(tmp_path / "whole"):
        folder = tmp_path / str(size)
        deployment(folder)

        def starved(folder: Path = folder, size: int = size) -> Life:
            def work() -> Life:
                limit_files(size - 1)
                return run_job(folder)

            return apart(work)

        lives = starved_then_fed(folder, starved, lambda folder=folder: run_job(folder))
        assert all(str(folder) in life["error"] and life["code"] == 3 for life in lives), lives
        # The first life may charge a round that it cannot keep; the next ones charge nothing more.
        assert lives[0]["charged"] == lives[1]["charged"] == lives[2]["charged"], lives
        refused |= {Path(re.split("[ :]", life["error"])[0]).name for life in lives}
    assert {"ledger.jsonl", "round-000001.safetensors"} <= refused, refused


@pytest.mark.parametrize(
    "pages", [pytest.param(pages, marks=[pytest.mark.slow] if pages % 3 else []) for pages in range(24)]
)
def test_a_full_file_system_loses_no_charge_and_applies_no_round_twice(pages: int, tmp_path: Path) -> None:
    """ENOSPC: so many pages are left, and the job runs into the end of them, wherever that is."""

    def work() -> list[Life]:
        folder = tmp_path / "job"
        deployment(folder)

        def starved() -> Life:
            leave(tmp_path, pages * PAGE)
            life = apart(lambda: run_job(folder))
            empty(tmp_path)
            return life

        return starved_then_fed(folder, starved, lambda: run_job(folder))

    lives = on_a_disk(tmp_path, 4 << 20, work)
    assert all(life["code"] == 3 and str(tmp_path / "job") in life["error"] for life in lives if life["error"]), lives
    assert lives[0]["error"] or pages > 20, "so few pages were enough"


@pytest.mark.parametrize("room", [0, PAGE, 64 * PAGE])
def test_rounds_that_find_no_room_ask_nobody_and_charge_nothing(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page or two would do for the ledger alone: then the charge would stand, and its round be lost."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")

    def work() -> dict[str, Any]:
        folder = tmp_path / "job"
        deployment(folder)

        def starved() -> Life:
            return run_app(folder, lambda: leave(tmp_path, room))

        lives = []
        for _ in range(2):
            lives.append(apart(starved))
            empty(tmp_path)
        before = charged(folder)
        last = apart(lambda: run_app(folder))
        return {"lives": lives, "charged": before, "last": last, "moved": check_whole(folder)}

    found = on_a_disk(tmp_path, 4 << 20, work)
    for life in found["lives"]:
        assert (life["asked"], life["code"]) == ([], 3) and str(tmp_path / "job") in life["error"], life
    assert found["charged"] == [] and found["last"]["error"] == ""
    assert found["moved"][-1] == pytest.approx(STEPS)


def test_room_that_goes_while_devices_answer_costs_no_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers are in and nothing is charged: devices are asked again when there is room."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")

    def work() -> dict[str, Any]:
        folder = tmp_path / "job"
        deployment(folder)
        starved = apart(lambda: run_app(folder, while_asked=lambda: leave(tmp_path, 8 * PAGE)))
        before, progress = charged(folder), read_progress(folder)
        empty(tmp_path)
        last = apart(lambda: run_app(folder))
        return {"starved": starved, "charged": before, "progress": progress, "last": last, "moved": check_whole(folder)}

    found = on_a_disk(tmp_path, 4 << 20, work)
    assert set(found["starved"]["asked"]) == {0} and found["starved"]["code"] == 3
    assert "no room for" in found["starved"]["error"] and found["charged"] == []
    assert (found["progress"]["state"], found["progress"]["exit_code"]) == ("failed", 3)
    assert "no room for" in found["progress"]["problem"]
    assert found["last"]["error"] == "" and found["moved"][-1] == pytest.approx(STEPS)


def test_a_job_whose_last_release_was_refused_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of the last round stands: the server must not end before it is released."""
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    deployment(tmp_path)
    in_the_way = tmp_path / "releases" / f".{STEPS:06d}.new"
    in_the_way.parent.mkdir()
    in_the_way.write_text("no folder")
    life = apart(lambda: run_app(tmp_path))
    assert life["code"] == 3 and str(tmp_path / "releases") in life["error"]
    assert rounds_done(tmp_path / "checkpoints") == STEPS and not is_finished(Job.load(tmp_path))
    in_the_way.unlink()
    assert apart(lambda: run_app(tmp_path)) == {"asked": [], "error": "", "code": 0}
    assert is_finished(Job.load(tmp_path)) and max(found(tmp_path)) == STEPS


def test_an_invitation_without_room_gives_no_number_away(tmp_path: Path) -> None:
    """The roster, the certificates and the invitation, each refused in its turn."""
    folder, key, out = tmp_path / "job", tmp_path / "key.pub", tmp_path / "invitation.json"
    deployment_without_keys(folder)
    key.write_bytes(public_key())
    line = ["server", "invite", str(folder), "--public-key", str(key), "--out", str(out)]
    codes = {}
    for most in (0, 200, 300, 600, 900, 2000, 10_000):

        def starved(most: int = most) -> tuple[int, str]:
            limit_files(most)
            with redirect_stderr(StringIO()) as err, redirect_stdout(StringIO()):
                return call(line), err.getvalue()

        codes[most], said = apart(starved)
        assert codes[most] in (0, 3), said
        if codes[most]:
            assert str(tmp_path) in said and "no room" in said and not out.exists(), said
            assert len(Roster(folder, devices=DEVICES).enrolled()) <= 1
    assert {0, 3} == set(codes.values())
    key.write_bytes(public_key())
    assert call(line) == 0 and [row.number for row in Roster(folder, devices=DEVICES).enrolled()] == [0, 1]
