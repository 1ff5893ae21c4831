"""Rounds over a real Flower grid: what comes is summed, and what is hostile counts as nothing."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.superlink.grid import InMemoryGrid

from fedrecall.client.device.app import app
from fedrecall.client.training.cohort import Cohort
from fedrecall.protocol.records import Arrays, Update
from fedrecall.protocol.task import Task
from fedrecall.protocol.tensors import pack, unpack
from fedrecall.server.config import ServerConfig
from fedrecall.server.deployment.grid import DeviceCollector, Post, Roll, update_of
from fedrecall.server.deployment.job import Job

from ...client.device.small_devices import enrol, world_of
from ...client.training.engine_contract import HISTORIES, Case, World
from .flower_nodes import Node, flower

SGD = ServerConfig(optimiser="sgd", learning_rate=7.0)
Tamper = Callable[[dict[str, np.ndarray], dict[str, object]], tuple[dict[str, np.ndarray], dict[str, object]]]


def reply(message: Message, data: bytes) -> Message:
    packed = Array("uint8", (len(data),), "safetensors", data)
    return Message(RecordDict({"update": ArrayRecord({"packed": packed})}), reply_to=message)


def honest(message: Message, context: Context) -> Message:
    return app(message, context)


def gone(message: Message, context: Context) -> Message:
    return Message(Error(code=1, reason="gone"), reply_to=message)


def silent(message: Message, context: Context) -> Message | None:
    return app(message, context) if message.metadata.message_type == "query" else None


def answering(answer: Callable[[Message, bytes], Message | None]) -> Node:
    """Return a node that says honestly who it is, and answers rounds with ``answer`` of its honest update."""

    def node(message: Message, context: Context) -> Message | None:
        found = app(message, context)
        if message.metadata.message_type == "query":
            return found
        return answer(message, found.content.array_records["update"]["packed"].data)

    return node


def tampering(tamper: Tamper) -> Node:
    def answer(message: Message, data: bytes) -> Message:
        return reply(message, pack(*tamper(*unpack(data, what="update"))))

    return answering(answer)


def job_of(folder: Path, task: Task, arrays: Arrays, deadline_s: float = 20.0) -> Job:
    folder.mkdir()
    job = Job(folder=folder, task=task, config=SGD, deadline_s=deadline_s, wait_s=0.0)
    job.save(arrays)
    return Job.load(folder)


def deploy(
    tmp_path: Path,
    nodes: dict[int, Node],
    *,
    devices: int = 4,
    deadline_s: float = 20.0,
    steps: int = 1,
    missing: int = 0,
) -> tuple[dict[str, np.ndarray], Counter[str]]:
    """Train over the first ``devices`` of four and more, in real folders, all honest but ``nodes``."""
    world, task, arrays = small_world(max(4, devices, *(n + 1 for n in nodes)) if nodes else 4, steps)
    tmp_path.mkdir(exist_ok=True)
    folders = enrol(tmp_path / "devices", world, task)[:devices]
    job, refusals = job_of(tmp_path / "server", task, arrays, deadline_s), Counter()
    behaviours = [nodes.get(number, honest) for number in range(len(folders))]
    with flower(behaviours, [{"device": str(folder)} for folder in folders]) as grid:
        state = job.run(collector_of(grid, task, refusals, len(folders) - missing, deadline_s), refusals)
    return dict(state.arrays), refusals


def small_world(devices: int, steps: int) -> tuple[World, Task, dict[str, np.ndarray]]:
    case = Case(clip=0.3, histories=tuple(HISTORIES[2 + n % 6] for n in range(devices)))
    _, task, _ = world_of(case)
    return world_of(case, mechanisms=(replace(task.plan.mechanism("rounds"), steps=steps),))


def collector_of(
    grid: Post, task: Task, refusals: Counter[str], connected: int, deadline_s: float = 20.0
) -> DeviceCollector:
    roll = Roll(grid=grid, task=task.digest(), devices=task.plan.devices)
    roll.wait(connected, 20.0)
    return DeviceCollector(
        grid=grid,
        task=task.digest(),
        mechanism="rounds",
        trained=task.trained,
        nodes=roll.nodes,
        deadline_s=deadline_s,
        on_refused=lambda reason: refusals.update([reason]),
    )


def other(message: Message, data: bytes) -> Message:
    return Message(RecordDict({"update": ConfigRecord({"x": 1})}), reply_to=message)


NAME = "transformer.out.weight"
HOSTILE: dict[str, tuple[Node, str]] = {
    "NaN": (tampering(lambda a, h: ({**a, NAME: np.full_like(a[NAME], np.nan)}, h)), "nan"),
    "Inf": (tampering(lambda a, h: ({**a, NAME: np.full_like(a[NAME], np.inf)}, h)), "nan"),
    "wrong shape": (tampering(lambda a, h: ({**a, NAME: a[NAME][:-1]}, h)), "shape"),
    "broadcastable": (tampering(lambda a, h: ({**a, NAME: a[NAME][:1]}, h)), "shape"),
    "wrong dtype": (tampering(lambda a, h: ({**a, NAME: a[NAME].astype(np.float64)}, h)), "dtype"),
    "extra array": (tampering(lambda a, h: ({**a, "item.more": np.zeros(2, np.float32)}, h)), "extra"),
    "missing array": (tampering(lambda a, h: ({n: v for n, v in a.items() if n != NAME}, h)), "missing"),
    "x 100": (tampering(lambda a, h: ({n: np.asarray(v * 100) for n, v in a.items()}, h)), "norm"),
    "stale round": (tampering(lambda a, h: (a, {**h, "round": 7})), "stale"),
    "no nonce": (tampering(lambda a, h: (a, {**h, "nonce": ""})), "replay"),
    "a sum": (tampering(lambda a, h: (a, {"round": h["round"], "devices": 5})), "format"),
    "round as text": (tampering(lambda a, h: (a, {**h, "round": "0"})), "format"),
    "too large": (tampering(lambda a, h: ({**a, "item.more": np.zeros(30_000, np.float32)}, h)), "size"),
    "no tensors": (answering(lambda m, d: reply(m, b"\x80\x04." * 9)), "format"),
    "cut short": (answering(lambda m, d: reply(m, d[:-8])), "format"),
    "another record": (answering(other), "format"),
    "an error": (answering(lambda m, d: Message(Error(code=1, reason="secret 4711"), reply_to=m)), "error"),
    "a refusal": (
        answering(lambda m, d: Message(RecordDict({"refused": ConfigRecord({"reason": "budget"})}), reply_to=m)),
        "budget",
    ),
    "a refusal in its own words": (
        answering(lambda m, d: Message(RecordDict({"refused": ConfigRecord({"reason": "4711"})}), reply_to=m)),
        "failed",
    ),
}


def test_hostile_replies_count_as_nothing(tmp_path: Path) -> None:
    """Each kind from a device of its own: the model is, to the bit, that of a round without them."""
    nodes = {4 + place: node for place, (node, _) in enumerate(HOSTILE.values())}
    found, refusals = deploy(tmp_path / "hostile", nodes, devices=4 + len(nodes))
    assert refusals == Counter(reason for _, reason in HOSTILE.values())
    gone, absent = deploy(tmp_path / "gone", nodes, devices=4)
    assert absent == {"absent": len(nodes)}
    for name in gone:
        np.testing.assert_array_equal(found[name], gone[name], err_msg=name)


def test_a_nonce_of_another_device_counts_once(tmp_path: Path) -> None:
    copying = tampering(lambda a, h: (a, {**h, "nonce": "0" * 32}))
    _, refusals = deploy(tmp_path / "run", {2: copying, 3: copying})
    assert refusals == {"replay": 1}


class Echoing:
    """A grid whose replies come twice, and of which one says that it is from another node."""

    def __init__(self, grid: InMemoryGrid) -> None:
        self.grid, self.forged = grid, False

    def get_node_ids(self) -> list[int]:
        return list(self.grid.get_node_ids())

    def push_messages(self, messages: list[Message]) -> list[str]:
        return list(self.grid.push_messages(messages))

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        replies = list(self.grid.pull_messages(message_ids))
        if replies and not self.forged and replies[0].metadata.message_type == "train":
            self.forged = True
            replies[0].metadata.__dict__["_src_node_id"] += 1
        return [*replies, *replies]


def test_a_reply_that_comes_twice_or_from_another_node_counts_once_or_never(tmp_path: Path) -> None:
    world, task, arrays = small_world(4, 1)
    folders = enrol(tmp_path / "devices", world, task)
    job, refusals = job_of(tmp_path / "server", task, arrays), Counter()
    seen: list[Update] = []
    with flower([honest] * 4, [{"device": str(folder)} for folder in folders]) as grid:
        collector = collector_of(Echoing(grid), task, refusals, 4)

        def watched(round: int, released: Arrays, cohort: np.ndarray, clip: float | None) -> Iterator[Update]:
            for update in collector(round, released, cohort, clip):
                seen.append(update)
                yield update

        job.run(watched, refusals)
    assert len({update.nonce for update in seen}) == len(seen) == 3
    assert set(refusals) == {"replay"}


def test_a_round_ends_by_its_deadline_with_what_came(tmp_path: Path) -> None:
    began = time.monotonic()
    found, refusals = deploy(tmp_path / "late", {3: silent}, deadline_s=4.0)
    assert refusals == {"late": 1}
    assert 4.0 <= time.monotonic() - began < 4.0 + 5.0
    gone, _ = deploy(tmp_path / "gone", {}, devices=3)
    for name in gone:
        np.testing.assert_array_equal(found[name], gone[name], err_msg=name)


def test_the_mean_divides_by_the_expected_cohort(tmp_path: Path) -> None:
    """One step of plain SGD is linear in the sum: the parts of a cohort together move the model as the whole does."""
    _, _, start = small_world(4, 1)
    whole, none = deploy(tmp_path / "whole", {})
    first, absent = deploy(tmp_path / "first", {}, devices=2)
    rest, _ = deploy(tmp_path / "rest", dict.fromkeys((0, 1), gone), missing=2)
    assert none == {} and absent == {"absent": 2}
    for name in start:
        parts = (first[name] - start[name]) + (rest[name] - start[name])
        np.testing.assert_allclose(parts, whole[name] - start[name], rtol=0, atol=1e-6)


def test_the_honest_end_where_the_batched_path_ends(tmp_path: Path) -> None:
    """Parity over real messages and real folders: the oracle of tests/client holds the batched path itself."""
    world, task, arrays = small_world(4, 3)
    cohort = Cohort(
        store=world.store,
        shape=world.shape,
        features=world.features,
        local=world.local,
        unit="user",
        trained=task.trained,
        seed=task.seed,
        device=torch.device("cpu"),
    )
    expected = job_of(tmp_path / "batched", task, arrays).run(
        lambda round, released, users, clip: cohort.collect(round, released, users, clip_norm=clip), Counter()
    )
    found, refusals = deploy(tmp_path / "run", {}, steps=3)
    assert not refusals
    for name in arrays:
        np.testing.assert_allclose(found[name], expected.arrays[name], rtol=0, atol=1e-6)
        assert (np.abs(found[name] - arrays[name]).max() > 1e-4) == (name in task.trained)


def test_two_nodes_that_claim_one_device_are_both_left_out(tmp_path: Path) -> None:
    world, task, _ = small_world(4, 1)
    folders = enrol(tmp_path / "devices", world, task)[:3]
    places = [*folders, folders[1]]
    with flower([honest] * 4, [{"device": str(folder)} for folder in places]) as grid:
        for digest, devices, expected in (
            (task.digest(), 4, {0, 2}),
            ("another task", 4, set()),
            (task.digest(), 2, {0}),
        ):
            roll = Roll(grid=grid, task=digest, devices=devices)
            roll.wait(devices, 1.5)
            assert set(roll.nodes()) == expected


def test_with_enrolled_keys_a_nodes_word_counts_for_nothing(tmp_path: Path) -> None:
    world, task, _ = small_world(4, 1)
    folders = enrol(tmp_path / "devices", world, task)
    ids: dict[int, int] = {}

    def noting(place: int) -> Node:
        def node(message: Message, context: Context) -> Message:
            ids[place] = context.node_id
            return app(message, context)

        return node

    # The last node holds device 3's key and says that it is device 0; nobody enrolled the key of node 2.
    places = [folders[0], folders[1], folders[2], folders[0]]
    with flower([noting(place) for place in range(4)], [{"device": str(folder)} for folder in places]) as grid:
        believing = Roll(grid=grid, task=task.digest(), devices=4)
        believing.wait(4, 1.5)
        assert set(believing.nodes()) == {1, 2}
        keys = {0: ids[0], 1: ids[1], 2: 4711, 3: ids[3]}
        roll = Roll(grid=grid, task=task.digest(), devices=4, enrolled=lambda: keys)
        assert roll.nodes() == {0: ids[0], 1: ids[1], 3: ids[3]}
        del keys[1]
        assert roll.nodes() == {0: ids[0], 3: ids[3]}


def test_a_killed_job_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    world, task, arrays = small_world(4, 3)
    folders = enrol(tmp_path / "devices", world, task)
    asked: list[str] = []
    killed = threading.Event()

    def counting(message: Message, context: Context) -> Message | None:
        if message.metadata.message_type == "train":
            data = message.content.array_records["ask"]["packed"].data
            asked.append(hashlib.sha256(data).hexdigest())
        return app(message, context)

    job, refusals = job_of(tmp_path / "server", task, arrays), Counter()
    with flower([counting] * len(folders), [{"device": str(folder)} for folder in folders]) as grid:
        collector = collector_of(grid, task, refusals, len(folders))

        def dying(round: int, released: Arrays, cohort: np.ndarray, clip: float | None) -> Iterator[Update]:
            for place, update in enumerate(collector(round, released, cohort, clip)):
                if round == 1 and place == 2 and not killed.is_set():
                    killed.set()
                    raise KeyboardInterrupt
                yield update

        with pytest.raises(KeyboardInterrupt):
            job.run(dying, refusals)
        state = Job.load(tmp_path / "server").run(dying, refusals)
    assert state.round == 3
    # The devices were asked for round 1 twice with the same bytes, and answered with the same bytes.
    assert len(set(asked)) == 3 and len(asked) == 4 * len(folders)
    expected, _ = deploy(tmp_path / "run", {}, steps=3)
    for name in arrays:
        np.testing.assert_array_equal(state.arrays[name], expected[name])


def test_an_update_reads_back(tmp_path: Path) -> None:
    data = pack({"item.x": np.ones(3, np.float32)}, {"round": 3, "nonce": "n"})
    update = update_of(data)
    assert (update.round, update.nonce) == (3, "n")
    np.testing.assert_array_equal(update.arrays["item.x"], np.ones(3, np.float32))
