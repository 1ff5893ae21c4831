"""Training on Flower's simulation engine: virtual nodes that host shards of users, or one user each.

A shard runs the batched path over its users in the cohort and answers with the sum of their clipped contributions;
``flower.shards = "users"`` makes every user a node on the device path, as a real device is. Sums over users, a file
named in an ask, and Ray, whose processes unpickle each other's messages, exist in simulations alone.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from flwr.supercore import telemetry

from fedrecall.client.events.store import EventStore
from fedrecall.client.training.cohort import Cohort
from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.files import read_bounded, write_atomic
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.protocol.tensors import pack, unpack
from fedrecall.server.deployment.grid import SLACK, Post, as_message, exchange, packed_bytes, update_of
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.simulations.config import parse_config
from fedrecall.simulations.training.collect import Collect
from fedrecall.simulations.training.world import World, cohort_of, threads, trained_names, trainer_of

_MAX_BYTES = 64 << 30
_START_S = 300.0
_POLL_S = 0.02

client = ClientApp()


@client.train()
def serve(message: Message, context: Context) -> Message:
    """Answer a round on a virtual node, for the users that the ask names."""
    arrays, header = unpack(message.content.array_records["ask"]["packed"].data, what="the ask")
    users = np.array(message.content.config_records["users"]["numbers"], dtype=np.int64)
    host = _host(header["world"])
    data = host.one(arrays, header, int(users[0])) if header["single"] else host.many(arrays, header, users)
    packed = Array("uint8", (len(data),), "safetensors", data)
    return Message(RecordDict({"update": ArrayRecord({"packed": packed})}), reply_to=message)


@client.query()
def ready(message: Message, context: Context) -> Message:
    """Say that a worker process has loaded."""
    return Message(RecordDict(), reply_to=message)


@contextmanager
def simulation(world: World, out: Path) -> Iterator[Collect]:
    """Start Flower's engine in this process and yield the collector that asks its nodes."""
    shards = world.config.flower.shards
    workers = threads(world.config)
    nodes = world.store.n_users if shards == "users" else (shards or workers)
    with _grid(nodes, workers, world.config.flower.address) as grid:
        yield collector(world, out, grid, single=shards == "users")


def collector(world: World, out: Path, grid: Post, *, single: bool) -> Collect:
    """Return what asks all nodes of ``grid``, each for its share of a cohort, or each for one user (``single``).

    In a simulation nothing fails silently: a node without an answer raises FedrecallError.
    """
    path = out / "private" / "flower.safetensors"
    _write_world(path, world)
    ids = sorted(grid.get_node_ids())
    names = trained_names(world)

    def asks(round: int, arrays: Arrays, users: np.ndarray, clip_norm: float | None) -> Iterator[Message]:
        header = {"round": round, "clip_norm": clip_norm, "world": str(path.resolve()), "single": single}
        data = pack(arrays, header)
        shares = [users[k : k + 1] for k in range(len(users))] if single else np.array_split(users, len(ids))
        for node, share in zip(ids, shares, strict=False):
            message = as_message(data, node, ttl=None)
            message.content["users"] = ConfigRecord({"numbers": share.tolist()})
            yield message

    def replies(round: int, arrays: Arrays, users: np.ndarray, clip_norm: float | None) -> Iterator[bytes]:
        bound = sum(2 * arrays[name].nbytes for name in names) + SLACK
        messages = asks(round, arrays, users, clip_norm)
        for reply in exchange(grid, messages, deadline_s=None, on_refused=_failed, poll_s=_POLL_S):
            yield packed_bytes(reply, "update", max_bytes=bound)

    def updates(round: int, arrays: Arrays, users: np.ndarray, clip_norm: float | None) -> Iterator[Update]:
        return (update_of(data) for data in replies(round, arrays, users, clip_norm))

    def total(round: int, arrays: Arrays, users: np.ndarray, clip_norm: float | None) -> CohortSum:
        found = sorted(
            (unpack(data, what="a shard's sum") for data in replies(round, arrays, users, clip_norm)),
            key=lambda part: part[1]["first"],  # floating-point sums depend on the order
        )
        sums = {name: np.sum([part[name] for part, _ in found], axis=0) for name in found[0][0]}
        return CohortSum(round=round, devices=sum(header["devices"] for _, header in found), arrays=sums)

    return updates if single else total


@dataclass(frozen=True, kw_only=True, eq=False)
class _Host:
    """What a worker process keeps of a simulation between asks."""

    world: World

    @cached_property
    def _cohort(self) -> Cohort:
        return cohort_of(self.world)

    @cached_property
    def _trainer(self) -> Trainer:
        return trainer_of(self.world)

    def many(self, arrays: Arrays, header: dict[str, Any], users: np.ndarray) -> bytes:
        adaptive = self.world.plan.mechanism(ROUNDS).adaptive_clip is not None
        round, clip_norm = header["round"], header["clip_norm"]
        found = self._cohort.collect(round, arrays, users, None, clip_norm=clip_norm, count_within=adaptive)
        first = int(users[0]) if len(users) else -1
        return pack(found.arrays, {"round": found.round, "devices": found.devices, "first": first})

    def one(self, arrays: Arrays, header: dict[str, Any], user: int) -> bytes:
        world, round = self.world, header["round"]
        noise = SeededNoise(world.config.seed, world.plan.digest(), "device", user, round)
        device = Device(store=world.store.only(user), key=user, tower={})
        update = self._trainer.update(round, arrays, device, noise, clip_norm=header["clip_norm"])
        return pack(update.arrays, {"round": update.round, "nonce": update.nonce})


@lru_cache(maxsize=1)
def _host(path: str) -> _Host:
    """Read a world once a worker process: its file does not change while the engine runs."""
    columns, header = unpack(read_bounded(Path(path), max_bytes=_MAX_BYTES), what=path)
    torch.set_num_threads(1)
    store = EventStore(
        offsets=columns["offsets"],
        items=columns["items"],
        times=columns.get("times"),
        types=columns["types"],
        weights=columns["weights"],
        n_items=header["n_items"],
        type_names=tuple(header["type_names"]),
    )
    return _Host(
        world=World(
            config=parse_config(header["config"]),
            plan=Plan.from_dict(header["plan"]),
            store=store,
            features=columns.get("features"),
            shape=ModelShape(**header["shape"]),
        )
    )


def _write_world(path: Path, world: World) -> None:
    store = world.store
    columns = {"offsets": store.offsets, "items": store.items, "types": store.types, "weights": store.weights}
    columns |= {"times": store.times} if store.times is not None else {}
    columns |= {"features": world.features} if world.features is not None else {}
    header = {
        "config": world.config.model_dump(mode="json"),
        "plan": world.plan.to_dict(),
        "shape": asdict(world.shape),
        "n_items": store.n_items,
        "type_names": list(store.type_names),
    }
    write_atomic(path, pack(columns, header))


class _Watched:
    """The engine's grid, for as long as the engine runs."""

    def __init__(self, grid: Grid, thread: threading.Thread) -> None:
        self._grid, self._thread = grid, thread

    def get_node_ids(self) -> list[int]:
        self._check()
        return list(self._grid.get_node_ids())

    def push_messages(self, messages: list[Message]) -> list[str]:
        self._check()
        return list(self._grid.push_messages(messages))

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        self._check()
        return list(self._grid.pull_messages(message_ids))

    def _check(self) -> None:
        if not self._thread.is_alive():
            raise FedrecallError("Flower's simulation engine ended early: look above for what Ray or Flower said")


@contextmanager
def _grid(nodes: int, workers: int, address: str | None) -> Iterator[Post]:
    """Run Flower's engine in a thread, which only hands its grid over: rounds stay with the caller."""
    if telemetry.FLWR_TELEMETRY_ENABLED != "0":
        raise FedrecallError("Flower was loaded with its telemetry on: set FLWR_TELEMETRY_ENABLED=0 and start again")
    logging.getLogger("flwr").setLevel(logging.ERROR)
    grids: SimpleQueue[Grid] = SimpleQueue()
    done = threading.Event()
    hand_over = ServerApp()

    @hand_over.main()
    def keep(grid: Grid, context: Context) -> None:
        grids.put(grid)
        done.wait()

    # Without "local" Ray would join whatever cluster was last started on this machine, and wait for a dead one.
    alone = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    own = alone if address is None else {"address": address}
    backend = {
        "init_args": {**own, "log_to_driver": False, "logging_level": "error"},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    thread = threading.Thread(target=run_simulation, args=(hand_over, client, nodes, "ray", backend), daemon=True)
    thread.start()
    try:
        watched = None
        for _ in range(int(_START_S / _POLL_S)):
            try:
                watched = watched or _Watched(grids.get(timeout=_POLL_S), thread)
            except Empty:
                if not thread.is_alive():
                    raise FedrecallError("Flower's simulation engine did not start: look above for why") from None
                continue
            if len(watched.get_node_ids()) == nodes:
                break
            done.wait(_POLL_S)
        else:
            raise FedrecallError(f"Flower's {nodes} virtual nodes were not there after {_START_S:.0f} s")
        first = sorted(watched.get_node_ids())[:workers]
        calls = [Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY) for node in first]
        for _ in exchange(watched, calls, deadline_s=_START_S, on_refused=_failed, poll_s=_POLL_S):
            pass
        yield watched
    finally:
        done.set()
        thread.join(_START_S)


def _failed(reason: str) -> None:
    raise FedrecallError(f"a virtual node gave no answer ({reason}): look above for what Flower said")
