"""Real Flower without Ray or processes: its in-memory SuperLink state and grid, and nodes that are threads."""

import secrets
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import HEARTBEAT_INTERVAL_INF, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import RunRecord
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

Node = Callable[[Message, Context], Message | None]
"""A client app, or what pretends to be one; ``None`` is silence."""

RUN = 77


@contextmanager
def flower(nodes: list[Node], configs: list[dict[str, str]] | None = None) -> Iterator[InMemoryGrid]:
    """Yield the grid of a run in which each of ``nodes`` answers its messages, with its node configuration."""
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    state = factory.state()
    run = Run.create_empty(run_id=RUN)
    run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, SUPERLINK_NODE_ID
    state.run_ids[RUN] = RunRecord(run=run)
    state.task_store[1] = Task(task_id=1, run_id=RUN)
    grid = InMemoryGrid(state_factory=factory, pull_interval=0.01)
    grid.set_run(run)
    stop = threading.Event()
    errors: list[BaseException] = []
    turn = threading.Lock()  # devices are processes of their own: nothing of them is made to share one

    def live(identity: int, node: Node, config: dict[str, str]) -> None:
        context = Context(run_id=RUN, node_id=identity, node_config=config, state=RecordDict(), run_config={})
        while not stop.is_set():
            for message in state.get_message_ins(node_id=identity, limit=1):
                try:
                    with turn:
                        reply = node(message, context)
                except BaseException as error:
                    errors.append(error)
                    return
                if reply is not None:
                    reply.metadata.__dict__["_message_id"] = str(uuid.uuid4())
                    state.store_message_res(reply)
            stop.wait(0.005)

    threads = []
    for place, node in enumerate(nodes):
        identity = state.create_node(
            NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, secrets.token_bytes(32), heartbeat_interval=HEARTBEAT_INTERVAL_INF
        )
        state.acknowledge_node_heartbeat(node_id=identity, heartbeat_interval=HEARTBEAT_INTERVAL_INF)
        config = configs[place] if configs else {}
        threads.append(threading.Thread(target=live, args=(identity, node, config), daemon=True))
        threads[-1].start()
    try:
        yield grid
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert not errors, errors
