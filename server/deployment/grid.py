"""A round over Flower's Grid: asks the cohort's nodes, and yields what comes before the deadline.

A node's reply is hostile until it is checked. What is no update counts as nothing, like a device that stayed silent,
and is told to ``on_refused`` by one word alone: who took part in a round, and with what, is in no log.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError
from fedrecall.protocol.records import Arrays, Update
from fedrecall.protocol.tensors import pack, unpack

SLACK = 1 << 16
"""Bytes of a message besides its numbers."""
_PACKED = "packed"
_REFUSALS = ("budget", "plan", "failed")
_QUERY_S = 600.0  # a device may be slow to start; it is not asked again meanwhile
_POLL_S = 0.1
_GRACE_S = 5.0  # a message outlives its round a little: else Flower calls a late node failed

Refused = Callable[[str], None]
"""Told of each reply, or silence, that counts as nothing: ``absent``, ``late``, ``error``, ``budget``, ``plan``,
``failed``, ``format``, ``size``, ``replay``."""


class Post(Protocol):
    """What a round needs of Flower's Grid."""

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes."""
        ...

    def push_messages(self, messages: list[Message]) -> Iterable[str]:
        """Send messages; return their ids."""
        ...

    def pull_messages(self, message_ids: list[str]) -> Iterable[Message]:
        """Return the replies that have come."""
        ...


def as_message(data: bytes, node: int, *, ttl: float | None) -> Message:
    """Return ``data`` as the ask of a round to ``node``."""
    packed = Array("uint8", (len(data),), "safetensors", data)
    record = RecordDict({"ask": ArrayRecord({_PACKED: packed})})
    return Message(record, dst_node_id=node, message_type=MessageType.TRAIN, ttl=ttl)


def exchange(
    grid: Post,
    messages: Iterable[Message],
    *,
    deadline_s: float | None,
    on_refused: Refused,
    poll_s: float = _POLL_S,
) -> Iterator[Message]:
    """Send ``messages`` and yield each one's first reply as it comes, until the deadline.

    A reply that answers nothing that is still open is dropped: a node that answers twice, or late, adds nothing.
    """
    ends = None if deadline_s is None else time.monotonic() + deadline_s
    waiting: dict[str, int] = {}
    for message in messages:
        for identity in grid.push_messages([message]):
            if identity:
                waiting[str(identity)] = message.metadata.dst_node_id
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is None or (reply.has_content() and reply.metadata.src_node_id != node):
                on_refused("replay")
            elif reply.has_error():
                on_refused("error")
            else:
                yield reply
        if ends is not None and time.monotonic() >= ends:
            break
        if waiting:
            time.sleep(poll_s)
    for _ in waiting:
        on_refused("late")


def packed_bytes(reply: Message, name: str, *, max_bytes: int) -> bytes:
    """Return the bytes in a reply's record ``name``; raises FedrecallError with one word for anything else."""
    content = reply.content
    if "refused" in content.config_records:
        word = content.config_records["refused"].get("reason")
        raise FedrecallError(word if word in _REFUSALS else "failed")
    record = content.array_records.get(name)
    if set(content) != {name} or record is None or set(record) != {_PACKED}:
        raise FedrecallError("format")
    if len(record[_PACKED].data) > max_bytes:
        raise FedrecallError("size")
    return record[_PACKED].data


@dataclass(kw_only=True, eq=False)
class Roll:
    """Which connected node is which enrolled device.

    With ``enrolled`` a device is its key (SuperNode authentication): the node that the roster names is the device, and
    nobody is asked. Without it, which is for trying on one machine, a node says so itself; one whose word contradicts
    another's, or who serves another task, is left out.

    Attributes:
        grid: of the run.
        task: digest of what devices agreed to.
        devices: of the plan.
        enrolled: returns the node of each enrolled device by its number, at this moment.
    """

    grid: Post
    task: str
    devices: int
    enrolled: Callable[[], Mapping[int, int]] | None = None
    _number: dict[int, int | None] = field(default_factory=dict)
    _open: dict[str, int] = field(default_factory=dict)

    def nodes(self) -> dict[int, int]:
        """Return the node of each device that is connected and has said so; ask those that are new."""
        connected = set(self.grid.get_node_ids())
        if self.enrolled is not None:
            return {number: node for number, node in self.enrolled().items() if node in connected}
        for node in set(self._number) - connected:
            del self._number[node]
        for node in sorted(connected - set(self._number) - set(self._open.values())):
            ask = Message(RecordDict(), dst_node_id=node, message_type=MessageType.QUERY, ttl=_QUERY_S)
            self._open |= {str(identity): node for identity in self.grid.push_messages([ask]) if identity}
        for reply in self.grid.pull_messages(list(self._open)) if self._open else ():
            asked = self._open.pop(reply.metadata.reply_to_message_id, None)
            if asked is not None and reply.has_content() and reply.metadata.src_node_id == asked:
                self._number[asked] = self._claimed(reply)
        claims: dict[int, list[int]] = {}
        for node, number in self._number.items():
            if number is not None:
                claims.setdefault(number, []).append(node)
        return {number: nodes[0] for number, nodes in claims.items() if len(nodes) == 1}

    def wait(self, devices: int, seconds: float) -> None:
        """Wait until that many devices are there, but no longer than ``seconds``."""
        ends = time.monotonic() + seconds
        while len(self.nodes()) < devices and time.monotonic() < ends:
            time.sleep(_POLL_S)

    def _claimed(self, reply: Message) -> int | None:
        record = reply.content.config_records.get("device")
        if record is None or record.get("task") != self.task:
            return None
        number = record.get("number")
        return number if type(number) is int and 0 <= number < self.devices else None


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceCollector:
    """Asks real devices: what ``Environment.collect`` is in a deployment. Takes updates alone, never a sum.

    Attributes:
        grid: of the run.
        task: digest of what devices agreed to.
        mechanism: of the plan, that rounds release.
        trained: names of the arrays that an update holds.
        nodes: the node of each connected device, by its number.
        deadline_s: seconds after which a round ends with what came.
        on_refused: see ``Refused``.
    """

    grid: Post
    task: str
    mechanism: str
    trained: tuple[str, ...]
    nodes: Callable[[], Mapping[int, int]]
    deadline_s: float
    on_refused: Refused

    def __call__(self, round: int, arrays: Arrays, cohort: np.ndarray, clip_norm: float | None) -> Iterator[Update]:
        """Yield the cohort's updates as they come. Nobody is asked in another's place (rule 7)."""
        bound = sum(arrays[name].nbytes for name in self.trained)
        header = {"round": round, "mechanism": self.mechanism, "clip_norm": clip_norm}
        yield from self._answers(arrays, header, cohort, bound)

    def statistic(self, mechanism: str, arrays: Arrays, cohort: np.ndarray, max_bytes: int) -> Iterator[Update]:
        """Yield what the cohort tells of a mechanism of the start; ``max_bytes`` is what its arrays may hold."""
        header = {"round": 0, "mechanism": mechanism, "clip_norm": None}
        yield from self._answers(arrays, header, cohort, max_bytes)

    def _answers(
        self, arrays: Arrays, header: Mapping[str, object], cohort: np.ndarray, max_bytes: int
    ) -> Iterator[Update]:
        data, nodes = pack(arrays, {**header, "task": self.task}), self.nodes()
        asked = [nodes[number] for number in cohort.tolist() if number in nodes]
        for _ in range(len(cohort) - len(asked)):
            self.on_refused("absent")
        bound = max_bytes + SLACK
        messages = (as_message(data, node, ttl=self.deadline_s + _GRACE_S) for node in asked)
        for reply in exchange(self.grid, messages, deadline_s=self.deadline_s, on_refused=self.on_refused):
            try:
                yield update_of(packed_bytes(reply, "update", max_bytes=bound))
            except CorruptArtefact:
                self.on_refused("format")
            except FedrecallError as error:
                self.on_refused(str(error))


def update_of(data: bytes) -> Update:
    """Decode an update; raises FedrecallError or CorruptArtefact for anything else."""
    arrays, header = unpack(data, what="an update")
    if set(header) != {"round", "nonce"} or type(header["round"]) is not int or not isinstance(header["nonce"], str):
        raise FedrecallError("format")
    return Update(round=header["round"], nonce=header["nonce"], arrays=arrays)
