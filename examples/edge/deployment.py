"""A real deployment on one machine, by the same commands that an operator and a device's user give."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedrecall.cli.app import call
from fedrecall.client.device.folder import DeviceFolder
from fedrecall.privacy.accounting.budget import Budget
from fedrecall.protocol.invitation import Invitation
from fedrecall.protocol.plan import Unit

ITEMS = 64
TINY = {
    "privacy": {"clip_norm": 0.5},
    "model": {"dim": 8, "window": 12, "blocks": 1, "heads": 2, "hidden": 16, "user_dim": 4, "user_hidden": 8},
    "local": {"negatives": 16},
    "server": {"optimiser": '"sgd"', "learning_rate": 1.0},
}
"""The smallest model that is still one: what is measured is the way of a round, not its maths."""
TINY_EVENTS = {
    "privacy": {"clip_norm": 0.01},
    "model": TINY["model"],
    "local": {"negatives": 16, "blocks": 64},
    "rounds": {"train": '["item."]'},
    "server": TINY["server"],
}
"""The same for unit ``interaction``: a clip that every block's gradient reaches."""

TAMPERED = """
import sys
if b"fedrecall.client.device.own_app" in open("/proc/self/cmdline", "rb").read():
    import time
    import numpy
    from fedrecall.client.device.folder import DeviceFolder
    from fedrecall.protocol.tensors import pack, unpack
    honest = DeviceFolder.answer
    def answer(self, data):
        {body}
    DeviceFolder.answer = answer
"""
"""A device whose owner changed the app that runs on it."""


def fedrecall(*arguments: str | Path) -> dict[str, Any]:
    """Run one command line inside this process and return its JSON; raises RuntimeError where it fails."""
    answer = io.StringIO()
    with redirect_stdout(answer):
        code = call([*map(str, arguments), "--format", "json"])
    if code:
        raise RuntimeError(f"fedrecall {' '.join(map(str, arguments))} ended with {code}")
    found: dict[str, Any] = json.loads(answer.getvalue())
    return found


def environment() -> dict[str, str]:
    """Return the environment of every process: one thread each."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def events_of(device: int, count: int = 20) -> list[str]:
    """Return made-up item identifiers of one device, oldest first."""
    rng = np.random.default_rng([7, device])
    return [f"i{item}" for item in rng.choice(ITEMS, size=count, replace=False)]


class World(Protocol):
    """What devices have events with."""

    def write_catalogue(self, path: Path) -> Path:
        """Write the public items with their titles and categories."""
        ...

    def write_events(self, path: Path, device: int) -> Path:
        """Write the events of one device."""
        ...


class Deployment:
    """A server and its devices, each a folder below one."""

    def __init__(
        self,
        folder: Path,
        *,
        devices: int,
        rounds: int,
        epsilon: float | None = 8.0,
        cohort: int | None = None,
        world: World | None = None,
        unit: Unit = "user",
        items: int = ITEMS,
        **options: float,
    ) -> None:
        """Make the job.

        Args:
            folder: of all of it.
            devices: how many.
            rounds: how many.
            epsilon: of the plan; ``None`` is no noise at all.
            cohort: how many devices a round asks, in turn; ``None`` for all.
            world: its catalogue and events, for the preset as it is, private start included; ``None`` for the smallest
                model, made-up events, and rounds alone.
            unit: of the plan: preset ``user-eps8`` or ``interaction-eps8``.
            items: of the made-up catalogue.
            options: those of ``server init``, by name.
        """
        self.folder, self.devices, self.rounds = folder, devices, rounds
        self.job, self.port = folder / "server", free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._world, catalogue = world, folder / "items.csv"
        settings = [f"rounds.count={rounds}", f"privacy.epsilon={epsilon or 'null'}"]
        place: list[str | Path] = ["--catalogue", catalogue]
        if world is None:
            catalogue.write_text("item\n" + "".join(f"i{n}\n" for n in range(items)))
            tiny: dict[str, dict[str, Any]] = TINY if unit == "user" else TINY_EVENTS
            settings += [f"{section}.{key}={value}" for section, keys in tiny.items() for key, value in keys.items()]
            settings += ["start.enabled=false"]
        else:
            world.write_catalogue(catalogue)
            place += ["--title", "title", "--categories", "categories"]
        if cohort is not None:
            settings += [f"rounds.cohort={cohort}", 'rounds.sampling="limited"']
        given = [part for setting in settings for part in ("-c", setting)]
        given += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        place += ["--devices", str(devices), "--address", f"127.0.0.1:{self.port}"]
        self.facts = fedrecall("server", "init", self.job, *place, "--preset", f"{unit}-eps8", *given)
        self._budget = Budget(epsilon=epsilon and 2 * epsilon, delta=1e-5, unit=unit)
        self.began = time.time()
        self._stack = ExitStack()

    def device(self, number: int) -> Path:
        """Return the folder of a device."""
        return self.folder / "devices" / str(number)

    def enrol(self, number: int, *, invitation: Path | None = None, items: Iterable[str] | None = None) -> Path:
        """Make the device ``number``, invited by its own key, or with the ``invitation`` of another.

        ``items`` are those that it had, oldest first, instead of the world's or made-up ones.
        """
        place = self.device(number)
        key = fedrecall("device", "init", place)["public_key"]
        if invitation is None:
            invitation = self.folder / f"invitation-{number}.json"
            fedrecall("server", "invite", self.job, "--public-key", key, "--out", invitation)
        DeviceFolder.enrol(place, Invitation.load(invitation), self._budget)
        events = self.folder / f"events-{number}.csv"
        if self._world is None or items is not None:
            events.write_text("item\n" + "".join(f"{item}\n" for item in items or events_of(number)))
        else:
            self._world.write_events(events, number)
        fedrecall("device", "ingest", place, events)
        return place

    def start(self, name: str, *arguments: str | Path, **extra: str) -> subprocess.Popen[bytes]:
        """Start a command that stays; it is ended with the deployment."""
        command = [sys.executable, "-m", "fedrecall.cli", *map(str, arguments)]
        log = self._stack.enter_context((self.folder / f"{name}.log").open("ab"))
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment() | extra)
        self._stack.callback(stop, process)
        return process

    def up(self, **extra: str) -> subprocess.Popen[bytes]:
        """Start the server; ``extra`` is added to its environment."""
        return self.start("up", "server", "up", self.job, **extra)

    def join(self, number: int, **extra: str) -> subprocess.Popen[bytes]:
        """Let a device take part; ``extra`` is added to its environment."""
        return self.start(f"device-{number}", "device", "join", self.device(number), **extra)

    def registered(self) -> bool:
        """Whether the SuperLink knows every device that was invited."""
        rows = json.loads((self.job / "devices.json").read_text())["devices"]
        return all(row["node"] is not None for row in rows)

    def progress(self) -> dict[str, Any]:
        """Return what the rounds last said of themselves."""
        path = self.job / "progress.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def status(self) -> dict[str, Any]:
        """Return what ``server status`` says."""
        return fedrecall("server", "status", self.job)

    def wait(self, what: Callable[[], bool], seconds: float, every: float = 0.5) -> float:
        """Wait until ``what`` holds and return how long it took; raises RuntimeError after ``seconds``."""
        began = time.monotonic()
        while not what():
            if time.monotonic() - began > seconds:
                raise RuntimeError(f"{what} does not hold after {seconds:.0f} s: see the logs in {self.folder}")
            time.sleep(every)
        return time.monotonic() - began

    def done(self) -> int:
        """Return how many rounds are released, without the weight of a command."""
        found = [int(path.stem.removeprefix("round-")) for path in (self.job / "checkpoints").glob("round-*")]
        return max(found, default=0)

    def charged(self, number: int, mechanism: str = "rounds") -> list[int]:
        """Return the releases of a mechanism that a device's ledger was charged for, in order."""
        lines = map(json.loads, (self.device(number) / "ledger.jsonl").read_text().splitlines())
        return [line["round"] for line in lines if line.get("mechanism") == mechanism]

    def close(self) -> None:
        """End every process of it."""
        self._stack.close()


@contextmanager
def deployed(folder: Path, **options: Any) -> Iterator[Deployment]:
    """Yield a new deployment and end its processes, whatever happens."""
    deployment = Deployment(folder, **options)
    try:
        yield deployment
    finally:
        deployment.close()


def tampered(folder: Path, body: str) -> str:
    """Write code that Python runs before a changed device's app; return the folder to put on its path."""
    return changed(folder, TAMPERED.format(body=body))


def changed(folder: Path, code: str) -> str:
    """Write ``code`` where Python runs it before anything else; return the path that finds it."""
    place = folder / f"changed-{abs(hash(code))}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "sitecustomize.py").write_text(code)
    return os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process of this script."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
