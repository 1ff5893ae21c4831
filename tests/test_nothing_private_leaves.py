"""Nothing private leaves and logs are clean: 64-byte secrets planted in towers, ids and events are looked for.

The wire is a real one: devices send over TCP, and a proxy keeps every byte that passes.
"""

import base64
import csv
import gzip
import logging
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from fedrecall.cli.app import call
from fedrecall.client.config import LocalConfig
from fedrecall.client.events.store import EventStore
from fedrecall.client.training.trainer import Device, Trainer
from fedrecall.models.recall import ITEM_ID, initial_arrays
from fedrecall.models.shape import ModelShape
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.allow_list import shared_names
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import Arrays, Update
from fedrecall.protocol.tensors import pack
from fedrecall.server.training.aggregation import mean_of, sum_updates
from fedrecall.server.training.validation import schema_of
from fedrecall.simulations.config import load_config
from fedrecall.simulations.data.importing.import_spec import ImportSpec
from fedrecall.simulations.data.importing.importer import import_files
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.runs.run import run

from .leak_search import holds, number_spellings, text_spellings
from .wire import Wire

USERS, ITEMS, EVENTS, BYTES = 12, 24, 12, 64
Towers = dict[str, torch.Tensor]


def sentinel(kind: str, number: int) -> str:
    """Return a text of 64 bytes that occurs nowhere else."""
    return f"{kind}{number:02d}" + np.random.default_rng([len(kind), number]).bytes(32).hex()[: BYTES - len(kind) - 2]


USER_IDS = [sentinel("person", user) for user in range(USERS)]
ITEM_IDS = [sentinel("thing", item) for item in range(ITEMS)]
TYPE_IDS = [sentinel("deed", kind) for kind in range(2)]


@pytest.fixture
def imported(cache: Path, tmp_path: Path) -> str:
    """Import a log of which every user, item, type and time is a sentinel."""
    rng, path = np.random.default_rng(0), tmp_path / "log.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["who", "what", "when", "how"])
        for user in USER_IDS:
            for item in rng.permutation(ITEMS)[:EVENTS]:
                when = int(rng.integers(1_500_000_000, 1_600_000_000))
                rows.writerow([user, ITEM_IDS[item], when, TYPE_IDS[rng.integers(2)]])
    import_files(ImportSpec(files=(path,), name="sentinels", user="who", item="what", time="when", event="how"))
    return "sentinels"


def test_sentinels_have_64_bytes() -> None:
    assert {len(text.encode()) for text in (*USER_IDS, *ITEM_IDS, *TYPE_IDS)} == {BYTES}


# The search.

WRAPS: dict[str, Callable[[bytes], bytes]] = {
    "raw": bytes,
    "base64": base64.b64encode,
    "base64 for addresses": base64.urlsafe_b64encode,
    "base64 in a text": lambda x: b"abcdefghijk" + base64.b64encode(x),
    "hexadecimal": lambda x: x.hex().encode(),
    "zlib": zlib.compress,
    "zlib, fast": lambda x: zlib.compress(x, 1),
    "zlib, broken off": lambda x: zlib.compress(x + bytes(range(256)) * 4)[:-20],
    "gzip": gzip.compress,
    "zlib in base64": lambda x: base64.b64encode(zlib.compress(x)),
    "base64 in zlib": lambda x: zlib.compress(base64.b64encode(x)),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("offset", range(4))
def test_the_search_finds_what_is_there(wrap: str, offset: int) -> None:
    rng = np.random.default_rng(offset)
    values, noise = rng.standard_normal(16).astype(np.float32), rng.standard_normal(60).tobytes()
    assert not holds(noise + WRAPS[wrap](noise), number_spellings(values) | text_spellings(USER_IDS[0]))
    for kind in ("f2", "<f4", ">f4", "f8"):
        hidden = bytes(offset) + values.astype(kind).tobytes() + b"end"
        assert holds(noise + WRAPS[wrap](hidden) + noise, number_spellings(values))
    for code in ("utf-8", "utf-16-le", "utf-16-be"):
        hidden = bytes(offset) + USER_IDS[0].encode(code) + b"end"
        assert holds(noise + WRAPS[wrap](hidden) + noise, text_spellings(USER_IDS[0]))
    times = rng.integers(1_500_000_000, 1_600_000_000, 8)
    for kind in ("i4", "<i8", ">i8"):
        hidden = bytes(offset) + times.astype(kind).tobytes() + b"end"
        assert holds(noise + WRAPS[wrap](hidden) + noise, number_spellings(times))
    assert holds(noise + WRAPS[wrap](bytes(offset) + str(times.tolist()).encode()), number_spellings(times))


# Nothing private leaves.


@dataclass(frozen=True, kw_only=True)
class Case:
    """One plan: the private towers train with it, where they may."""

    plan: Plan
    local: LocalConfig


def case(name: str) -> Case:
    interaction = name == "interaction"
    rounds = Mechanism(
        name="rounds",
        clip_norm=0.1 if interaction else 0.5,
        noise_multiplier=1.0,
        steps=100,
        adjacency="replace_one" if interaction else "add_remove",
    )
    steps, rate = (3, 0.5) if name == "many steps" else (1, 0.0 if interaction else 0.5)
    return Case(
        plan=Plan(
            unit="interaction" if interaction else "user",
            trust="local" if interaction else "central",
            delta=1e-5,
            devices=USERS,
            mechanisms=(rounds,),
        ),
        local=LocalConfig(steps=steps, negatives=8, tower_learning_rate=rate, blocks=3),
    )


def tower_secrets(tower: Towers) -> set[bytes]:
    """Return the spellings of every 64 bytes of a tower."""
    flat = [w.numpy().ravel() for w in tower.values()]
    chunks = (v[i : i + 16] for v in flat for i in range(0, len(v), 16))
    return set().union(*(number_spellings(v) for v in chunks))


def event_secrets(store: EventStore) -> set[bytes]:
    """Return the spellings of ids, times and types, and of what each device did, in order."""
    assert store.times is not None
    found = set().union(*(text_spellings(text) for text in (*USER_IDS, *ITEM_IDS, *TYPE_IDS)))
    for user in range(store.n_users):
        own = slice(int(store.offsets[user]), int(store.offsets[user + 1]))
        found |= number_spellings(store.items[own]) | number_spellings(store.times[own][:8])
    return found | {str(time).encode() for time in store.times.tolist()}


class Devices:
    """All devices of a data set: real trainers, towers full of secrets, answers as updates."""

    def __init__(self, name: str) -> None:
        torch.set_num_threads(1)
        self.store = load_dataset("sentinels").events
        kinds = len(self.store.type_names)
        self.shape = ModelShape(
            n_items=ITEMS,
            n_features=0,
            n_types=kinds,
            dim=4,
            window=6,
            blocks=1,
            heads=2,
            hidden=4,
            user_dim=16,
            user_hidden=4,
        )
        fresh = initial_arrays(self.shape, 0)
        rng = np.random.default_rng(1)
        table = rng.standard_normal(fresh[ITEM_ID].shape).astype(np.float32)
        self.arrays = {n: fresh[n].numpy() for n in shared_names(fresh)} | {ITEM_ID: table}
        self.case = case(name)
        private = [n for n in fresh if n.startswith("user.")] if self.case.plan.unit == "user" else []
        self.towers = [
            {n: torch.from_numpy(rng.standard_normal(fresh[n].shape).astype(np.float32)) for n in private}
            for _ in range(USERS)
        ]
        self.trainer = Trainer(
            shape=self.shape,
            features=None,
            local=self.case.local,
            plan=self.case.plan,
            trained=tuple(self.arrays),
            seed=1,
        )
        self.planted = event_secrets(self.store) | set().union(*map(tower_secrets, self.towers))
        self.secrets: set[bytes] = set()

    def answer(self, round: int, arrays: Arrays, cohort: np.ndarray) -> Iterator[Update]:
        """Yield each device's update; its tower before and after is a secret of the round."""
        for user in cohort.tolist():
            device = Device(store=self.store.only(user), key=user, tower=self.towers[user])
            update = self.trainer.update(round, arrays, device, SeededNoise(1, user, round))
            self.secrets |= tower_secrets(device.tower)
            yield update


def listen(caplog: pytest.LogCaptureFixture) -> None:
    """Hear every logger from debug level on: the root, and our own, whose level a command may have set."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="fedrecall")


def assert_listening(caplog: pytest.LogCaptureFixture) -> None:
    """Check that a debug record would have been heard up to now."""
    logging.getLogger("fedrecall.client.training.trainer").debug("still listening")
    assert "still listening" in caplog.text


def searched(devices: Devices, wire: Wire, rounds: int) -> tuple[int, int, int]:
    """Run rounds over the wire and search each; return messages, bytes and secrets."""
    arrays, seen, messages, searches = devices.arrays, 0, 0, 0
    plan = devices.case.plan
    clip = None if plan.trust == "local" else plan.mechanism("rounds").clip_norm
    for round in range(rounds):
        cohort = np.arange(round % 4, USERS, 4)
        total = sum_updates(wire.collect(round, arrays, cohort), schema_of(arrays), round=round, clip_norm=clip)
        change = mean_of(total.arrays, len(cohort))
        arrays = {n: (a + 0.3 * change[n]).astype(np.float32) for n, a in arrays.items()}
        sent, captured = wire.taken()
        assert len(sent) == len(cohort) and len({len(m) for m in sent}) == 1, "all updates have one size"
        assert len(captured) == sum(len(m) + 8 for m in sent)
        secrets = devices.secrets | (devices.planted if round in (0, rounds - 1) or round % 10 == 0 else set())
        assert not holds(captured, secrets)
        assert not any(holds(message, devices.secrets) for message in sent[:1])
        devices.secrets = set()
        seen, messages, searches = seen + len(captured), messages + len(sent), searches + len(secrets)
    return messages, seen, searches


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        ("one step", 100),
        ("many steps", 10),
        ("interaction", 10),
        pytest.param("many steps", 100, marks=pytest.mark.slow),
        pytest.param("interaction", 100, marks=pytest.mark.slow),
    ],
)
def test_nothing_private_leaves(
    name: str, rounds: int, imported: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Real devices and gate, a real socket; the same search finds the secrets in what the devices hold."""
    listen(caplog)
    devices = Devices(name)
    first = [{n: t.clone() for n, t in tower.items()} for tower in devices.towers]
    with Wire(answer=devices.answer) as wire:
        messages, seen, searches = searched(devices, wire, rounds)
    assert_listening(caplog)
    out, err = capfd.readouterr()
    for text in (caplog.text, out, err):
        assert not holds(text.encode(), devices.planted)
    held = pack({n: t.numpy() for n, t in first[5].items()} | {"events": devices.store.history(5)}, {})
    assert holds(held, devices.planted), "the same search would see it"
    if name != "interaction":
        assert all((first[u][n] != devices.towers[u][n]).any() for u in range(USERS) for n in first[u]), "towers train"
    with capfd.disabled():
        print(f"\nnothing private leaves: {name}, {rounds} rounds, {messages} updates, {seen:,} bytes, ", end="")
        print(f"{searches:,} spellings searched, 0 found")


LEAKS: dict[str, Callable[[Devices, Update], bytes]] = {
    "a tower": lambda d, u: d.towers[0]["user.vector.weight"].numpy().tobytes(),
    "a tower in half precision": lambda d, u: d.towers[0]["user.vector.weight"].numpy().astype(np.float16).tobytes(),
    "a person": lambda d, u: USER_IDS[0].encode(),
    "a person in base64": lambda d, u: base64.b64encode(b"id" + USER_IDS[0].encode()),
    "items": lambda d, u: d.store.history(0).tobytes(),
    "times, compressed": lambda d, u: zlib.compress(d.store.times[:EVENTS].tobytes()),
    "one time as text": lambda d, u: str(d.store.times[0]).encode(),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_device_that_leaks_into_an_array_is_caught(leak: str, imported: str) -> None:
    """The bytes go into the item table of one update, in place of its first numbers, behind the gate's back."""
    devices = Devices("one step")

    def leaking(round: int, arrays: Arrays, cohort: np.ndarray) -> Iterator[Update]:
        for update in devices.answer(round, arrays, cohort):
            table = update.arrays[ITEM_ID].tobytes()
            hidden = LEAKS[leak](devices, update)
            changed = np.frombuffer(hidden + table[len(hidden) :], dtype=np.float32).reshape(ITEMS, -1)
            yield Update(round=update.round, nonce=update.nonce, arrays={**update.arrays, ITEM_ID: changed})

    with Wire(answer=leaking) as wire:
        for _ in wire.collect(0, devices.arrays, np.arange(2)):
            pass
        sent, captured = wire.taken()
    assert holds(captured, devices.planted | devices.secrets)
    assert holds(sent[0], devices.planted | devices.secrets)


# Logs are clean.

RUN = """
engine = "device"
threads = 1
data.name = "sentinels"
model = { dim = 8, window = 8, blocks = 1, heads = 2, hidden = 8, user_dim = 16, user_hidden = 8 }
rounds = { count = 4, cohort = 9, evaluate_every = 2 }
local = { negatives = 10, tower_learning_rate = 0.5 }
personal = { steps = 2, negatives = 10 }
evaluation = { central = false }
server = { checkpoint_every = 1 }
"""
PUBLIC = {"run.json", "report.html", "config.toml", "model.safetensors", "items.safetensors", "manifest.json"}


@pytest.mark.parametrize("how", ["at debug level", "command line"])
def test_logs_are_clean(
    how: str, imported: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """The main job, with every logger at debug level and as people call it: nothing that it writes names anybody."""
    listen(caplog)
    (tmp_path / "run.toml").write_text(RUN)
    folder = tmp_path / "run"
    if how == "at debug level":
        run(load_config(tmp_path / "run.toml"), out=folder, progress=lambda *_: None)
        assert_listening(caplog)
    else:
        assert call(["run", str(tmp_path / "run.toml"), "--out", str(folder)]) == 0
    out, err = capfd.readouterr()
    assert how != "command line" or "recall@10" in out
    towers = load(sorted((folder / "private").glob("devices-*.safetensors"))[-1].read_bytes())
    assert all(towers["user.out.weight"].any(axis=(1, 2))), "towers trained, so that there is something to find"
    weights = set().union(
        *(tower_secrets({n: torch.from_numpy(t[user]) for n, t in towers.items()}) for user in range(USERS))
    )
    people = set().union(*(text_spellings(text) for text in USER_IDS))
    store = load_dataset(imported).events
    assert store.times is not None
    times = {str(time).encode() for time in store.times.tolist()}
    texts = {"standard output": out, "standard error": err, "log records": caplog.text}
    public = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "private" not in path.relative_to(folder).parts
    }
    assert set(public) >= PUBLIC | {"ledger.jsonl", "logs/run.log"} and any("checkpoints" in name for name in public)
    for name, data in {**public, **{n: t.encode() for n, t in texts.items()}}.items():
        assert not holds(data, people | weights | times), name
        assert b"person0" not in data and b"person1" not in data, name
    logged = "".join(texts.values()) + public["logs/run.log"].decode()
    assert not any(item in logged for item in ITEM_IDS), "items are public, but not who asked for them"
    assert holds(public["items.safetensors"], text_spellings(ITEM_IDS[0])), "the same search finds what is there"
    assert holds(next((folder / "private").glob("devices-*.safetensors")).read_bytes(), weights)
    with capfd.disabled():
        print(
            f"\nlogs are clean: {how}, {len(logged):,} bytes of logs, {sum(map(len, public.values())):,} bytes of ",
            end="",
        )
        print(f"{len(public)} public files, {len(people | weights | times):,} spellings, 0 found")
