"""The Flower engine: same weights as in one process. Without Ray in the fast tests, with it in the slow ones."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fedrecall.protocol.errors import ConfigError, FedrecallError
from fedrecall.protocol.records import Arrays, CohortSum
from fedrecall.simulations.config import to_toml
from fedrecall.simulations.runs.wiring import prepare
from fedrecall.simulations.training.collect import Collect
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.quiet import silence
from fedrecall.simulations.training.start import start_arrays
from fedrecall.simulations.training.world import World, cohort_of

silence()

from fedrecall.simulations.training import flower  # noqa: E402 - Flower reads what silence() sets when it is first imported

from ...server.deployment.flower_nodes import flower as nodes_of  # noqa: E402
from ..runs.small_runs import ROOT, small_config, start_cli  # noqa: E402

QUIET_ROUNDS = ("privacy.epsilon='null'", "server.optimiser='sgd'", "server.learning_rate=0.5", "rounds.count=3")


def world_of(*overrides: str, **options: str) -> World:
    return prepare(small_config(*overrides, **options), lambda *_: None)[2]


def asked(collect: Collect, world: World, users: np.ndarray, clip: float | None) -> dict[str, np.ndarray]:
    arrays, _ = start_arrays(world, lambda _: None, lambda *_: None)
    found = collect(1, arrays, users, clip)
    if isinstance(found, CohortSum):
        assert (found.round, found.devices) == (1, len(users))
        return dict(found.arrays)
    updates = list(found)
    assert len(updates) == len(users) and {u.round for u in updates} == {1}
    return {n: np.sum([u.arrays[n] for u in updates], axis=0, dtype=np.float64) for n in updates[0].arrays}


class TestCollector:
    """Over Flower's grid, with nodes that are threads: the messages are real."""

    @pytest.mark.parametrize("single", [False, True])
    @pytest.mark.parametrize("clip", [None, 0.05])
    def test_it_asks_for_what_one_process_computes(self, single: bool, clip: float | None, tmp_path: Path) -> None:
        world = world_of(*QUIET_ROUNDS, *([] if clip is None else ["privacy.epsilon=8", f"privacy.clip_norm={clip}"]))
        users = np.array([3, 8, 9, 77, 401], dtype=np.int64)
        with nodes_of([flower.client] * (5 if single else 3)) as grid:
            found = asked(flower.collector(world, tmp_path, grid, single=single), world, users, clip)
        expected = asked(flower_free(world), world, users, clip)
        largest = max(np.abs(array).max() for array in expected.values())
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-6 * largest, err_msg=name)

    def test_more_shards_than_users_and_an_empty_cohort(self, tmp_path: Path) -> None:
        world = world_of(*QUIET_ROUNDS)
        with nodes_of([flower.client] * 3) as grid:
            collect = flower.collector(world, tmp_path, grid, single=False)
            for users in (np.array([5]), np.array([], dtype=np.int64)):
                found = asked(collect, world, users, 0.1)
                expected = asked(flower_free(world), world, users, 0.1)
                for name in expected:
                    np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-12)

    def test_a_node_that_fails_ends_the_simulation(self, tmp_path: Path) -> None:
        from flwr.app import Error, Message

        world = world_of(*QUIET_ROUNDS)
        with nodes_of([lambda message, _: Message(Error(code=1, reason="lost"), reply_to=message)]) as grid:
            collect = flower.collector(world, tmp_path, grid, single=False)
            with pytest.raises(FedrecallError, match="virtual node"):
                asked(collect, world, np.array([1]), None)


def flower_free(world: World) -> Collect:
    """Return the batched path in this process."""
    cohort = cohort_of(world)

    def collect(round: int, arrays: Arrays, users: np.ndarray, clip: float | None) -> CohortSum:
        return cohort.collect(round, arrays, users, clip_norm=clip)

    return collect


def test_towers_that_train_in_rounds_are_refused() -> None:
    with pytest.raises(ConfigError, match="tower_learning_rate must be 0 with engine 'flower'"):
        small_config("local.tower_learning_rate=0.1", engine="flower")


def test_nothing_phones_home() -> None:
    """In a process of its own: what Flower and Ray decided when they were imported, and no other environment."""
    code = (
        "from fedrecall.simulations.training.quiet import silence; silence()\n"
        "from flwr.supercore import telemetry; from ray._common.usage import usage_lib\n"
        "assert telemetry.FLWR_TELEMETRY_ENABLED == '0'; assert not usage_lib.usage_stats_enabled()\n"
    )
    bare = {n: v for n, v in os.environ.items() if not n.startswith(("FLWR_", "RAY_"))} | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=bare, timeout=120)


def test_a_cluster_needs_a_number_of_shards() -> None:
    with pytest.raises(ConfigError, match=r"flower\.address needs flower\.shards"):
        small_config("flower.address=auto", engine="flower")


def test_where_a_cluster_is_stays_out_of_what_is_published() -> None:
    config = small_config("flower.address=10.0.0.1:6379", "flower.shards=2", engine="flower")
    assert "10.0.0.1" not in to_toml(config) and config.published()["flower"] == {"shards": 2}


@contextmanager
def two_ray_nodes() -> Iterator[str]:
    """Start a Ray cluster of two nodes with a core each, as two machines would; yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    common = [str(Path(sys.executable).parent / "ray"), "start", "--num-cpus", "1", "--disable-usage-stats", "--block"]
    # Of its own, or its address would be what Ray joins on this machine from then on; short, for the sockets in it.
    folder = tempfile.mkdtemp(prefix="ray-")
    head = ["--head", "--port", address.split(":")[1], "--include-dashboard", "false", "--temp-dir", folder]
    own = (head, ["--address", address])
    started: list[subprocess.Popen[bytes]] = []
    try:
        for more in own:
            quiet = subprocess.DEVNULL
            started.append(subprocess.Popen([*common, *more], stdout=quiet, stderr=quiet, start_new_session=True))
            for _ in range(600):
                status = [common[0], "status", "--address", address]
                said = subprocess.run(status, capture_output=True, text=True, timeout=60, check=False).stdout
                if said.count(" node_") >= len(started):
                    break
                time.sleep(0.2)
            else:
                raise TimeoutError(f"Ray's node {len(started)} did not come up")
        yield address
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
class TestEngine:
    """With Ray and its worker processes."""

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.parametrize("shards", ["3", "'users'"])
    def test_it_ends_with_the_weights_of_one_process(self, shards: str, tmp_path: Path) -> None:
        plan = (*QUIET_ROUNDS, "rounds.cohort=40", "threads=2", f"flower.shards={shards}")
        found = {}
        for engine in ("cohort", "flower"):
            world = world_of(*plan, engine=engine)
            found[engine] = train(
                world, tmp_path / engine, resume=False, validate=None, progress=lambda *_: None
            ).arrays
        begun, _ = start_arrays(world, lambda _: None, lambda *_: None)
        moved = max(np.abs(found["cohort"][name] - begun[name]).max() for name in begun)
        assert moved > 1e-2
        for name, array in found["cohort"].items():
            np.testing.assert_allclose(found["flower"][name], array, rtol=0, atol=1e-6, err_msg=name)

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_a_cluster_of_two_ray_nodes_ends_with_the_same_weights(self, tmp_path: Path) -> None:
        """One core each, so that neither can hold both worker processes."""
        plan = (*QUIET_ROUNDS, "rounds.cohort=40", "threads=2")
        with two_ray_nodes() as address:
            joined = world_of(*plan, "flower.shards=2", f"flower.address={address}", engine="flower")
            found = train(joined, tmp_path / "f", resume=False, validate=None, progress=lambda *_: None).arrays
        alone = train(world_of(*plan), tmp_path / "c", resume=False, validate=None, progress=lambda *_: None).arrays
        for name, array in alone.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6, err_msg=name)

    def test_the_command_writes_a_whole_run(self, tmp_path: Path) -> None:
        from ..runs.small_runs import flags

        process = start_cli(
            *("run", "--dataset", "synthetic", "--engine", "flower", "--out", tmp_path / "run", "--format", "json"),
            *flags("rounds.count=2"),
        )
        out, err = process.communicate(timeout=500)
        assert process.returncode == 0, err
        assert out.count("\n") == 1 and '"recall@50"' in out
