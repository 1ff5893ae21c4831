"""The server's app over a real grid: enrolled keys alone are asked, and every round is published."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Message

from fedrecall.client.device.app import app
from fedrecall.protocol.errors import FedrecallError
from fedrecall.server.deployment.app import run
from fedrecall.server.deployment.description import Deployment
from fedrecall.server.deployment.grid import Roll
from fedrecall.server.deployment.job import Job
from fedrecall.server.deployment.pace import read_progress
from fedrecall.server.deployment.publish import found
from fedrecall.server.deployment.roster import Roster
from fedrecall.server.recall.release import load_release
from fedrecall.server.training.rounds import ServerState

from ...client.device.small_devices import enrol
from .flower_nodes import Node, flower
from .small_jobs import job_in, publisher
from .test_grid import SGD, deploy, small_world
from .test_roster import public_key


def test_the_app_asks_enrolled_keys_and_publishes_each_round(tmp_path: Path) -> None:
    world, task, arrays = small_world(4, 2)
    folders = enrol(tmp_path / "devices", world, task)
    place = tmp_path / "server"
    place.mkdir()
    Job(folder=place, task=task, config=SGD, deadline_s=20.0, wait_s=20.0, quorum=4).save(arrays)
    items = tuple(f"i{n}" for n in range(world.shape.n_items))
    address, weights = "127.0.0.1:9092", dict.fromkeys(world.store.type_names, 1.0)
    Deployment(address=address, items=items, event_weights=weights, features=None, release=None, keep_releases=5).save(
        place
    )
    ids: dict[int, int] = {}

    def noting(number: int) -> Node:
        def node(message: Message, context: Context) -> Message:
            ids[number] = context.node_id
            return app(message, context)

        return node

    with flower([noting(n) for n in range(4)], [{"device": str(folder)} for folder in folders]) as grid:
        asking = Roll(grid=grid, task=task.digest(), devices=4)
        asking.wait(4, 20.0)
        roster = Roster(place, devices=4)
        for number in range(4):
            roster.enrol(public_key())
            roster.registered(number, ids[number])
        run(grid, Job.load(place))
    assert sorted(found(place)) == [1, 2]
    assert (read_progress(place)["connected"], read_progress(place)["refused"]) == (4, {})
    expected, _ = deploy(tmp_path / "without", {}, steps=2)
    release = load_release(place / "releases" / "latest")
    assert release.items.ids == items
    for name in expected:
        np.testing.assert_array_equal(release.model[name], expected[name], err_msg=name)


def test_a_release_that_a_kill_left_out_is_made_on_the_way_back(tmp_path: Path) -> None:
    """After the checkpoint and before the release: the round is charged and over, and devices must still get it."""
    publish = publisher(tmp_path)

    def dying(state: ServerState, head: str) -> None:
        if state.round == 2:
            raise KeyboardInterrupt
        publish(state, head)

    job = job_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        job.run(lambda *_: [], Counter(), dying)
    assert found(tmp_path) == [1]
    seen = []

    def watching(state: ServerState, head: str) -> None:
        seen.append(state.round)
        publish(state, head)

    Job.load(tmp_path).run(lambda *_: [], Counter(), watching)
    assert seen == [2, 3, 4]
    assert sorted(found(tmp_path)) == [2, 3, 4]


def test_a_release_that_cannot_be_written_stops_the_rounds(tmp_path: Path) -> None:
    """A full disk must not let budget be spent on rounds that nobody gets."""
    job, asked = job_in(tmp_path), []

    def full(state: ServerState, head: str) -> None:
        raise FedrecallError("no room")

    with pytest.raises(FedrecallError, match="no room"):
        job.run(lambda round, *_: asked.append(round) or [], Counter(), full)
    assert asked == [0]


def test_what_a_job_keeps_comes_back(tmp_path: Path) -> None:
    job = job_in(tmp_path, every_s=60.0, quorum=3)
    again = Job.load(tmp_path)
    assert (again.every_s, again.quorum, again.deadline_s) == (60.0, 3, 1.0)
    for wrong in ({"quorum": 5}, {"every_s": -1.0}, {"deadline_s": 0.0}):
        with pytest.raises(FedrecallError):
            replace(job, **wrong).check()  # type: ignore[arg-type]
