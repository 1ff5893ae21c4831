"""Invariants of the privacy page over whole runs, reduced: nothing private leaves, logs are clean, coins are coins."""

import base64
import csv
import io
import json
import logging
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load
from scipy import stats

from fedrecall.client.cohort import Cohort, Towers
from fedrecall.client.trainer import Device, Trainer
from fedrecall.privacy.noise import NoiseSource
from fedrecall.protocol.records import Arrays, CohortSum, Update
from fedrecall.protocol.tensors import pack
from fedrecall.simulations.config import RunConfig, parse_config
from fedrecall.simulations.data.importer import ImportSpec, import_files
from fedrecall.simulations.plan import plan_for
from fedrecall.simulations.run import run
from fedrecall.simulations.training import World, train

from .client.engine_contract import Case, make_world
from .privacy.test_sampler import chi2_binomial_p

BYTES = 64
USERS = 24

# What is searched for, and how.


def spellings(secret: bytes) -> set[bytes]:
    """Return the ways in which ``secret`` may be written: raw, hexadecimal, compressed, base64 at each offset."""
    found = {secret, secret.hex().encode(), zlib.compress(secret)[2:-4]}
    for offset in range(3):
        # The first and last characters depend on what stands beside the secret.
        found.add(base64.b64encode(bytes(offset) + secret)[4:-4])
    return found


def number_spellings(values: np.ndarray) -> set[bytes]:
    """Return the spellings of at least 64 bytes of numbers, in every width that could carry them."""
    kinds = (
        (np.float16, np.float32, np.float64) if values.dtype.kind == "f" else (np.int8, np.int16, np.int32, np.int64)
    )
    found: set[bytes] = set()
    for kind in kinds:
        raw = values.astype(kind).tobytes()
        found |= spellings(raw)
        found.add(json.dumps(values.astype(kind).tolist()).encode()[1:-1])
    return found


def views(data: bytes, depth: int = 2) -> Iterator[bytes]:
    """Yield ``data`` and everything packed inside it: base64, zlib, gzip, zip."""
    yield data
    if not depth:
        return
    for run_ in re.findall(rb"[A-Za-z0-9+/]{32,}", data):
        yield from views(base64.b64decode(run_[: len(run_) // 4 * 4]), depth - 1)
    for match in re.finditer(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08", data):
        try:
            yield from views(zlib.decompressobj(47).decompress(data[match.start() :]), depth - 1)
        except zlib.error:
            continue
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            for name in file.namelist():
                yield from views(file.read(name), depth - 1)


def holds(data: bytes, needles: set[bytes]) -> bool:
    return any(needle in view for view in views(data) for needle in needles)


@pytest.mark.parametrize("wrap", [bytes, base64.b64encode, zlib.compress, lambda x: base64.b64encode(zlib.compress(x))])
@pytest.mark.parametrize("offset", range(4))
def test_the_search_finds_what_is_there(wrap, offset: int) -> None:
    rng = np.random.default_rng(offset)
    values, text = rng.standard_normal(16).astype(np.float32), b"user-" + rng.bytes(32).hex().encode()
    for kind in (np.float16, np.float32, np.float64):
        hidden = bytes(offset) + values.astype(kind).tobytes() + b"end"
        assert holds(b"noise " + wrap(hidden) + b" noise", number_spellings(values))
    assert holds(b"noise " + wrap(bytes(offset) + text + b"end") + b" noise", spellings(text))
    assert not holds(wrap(rng.bytes(4000)), number_spellings(values) | spellings(text))


# Nothing private leaves.


CASES = {
    "one step": Case(clip=0.3, towers=True),
    "many steps": Case(steps=3, clip=0.02, towers=True),
    "interaction": Case(unit="interaction", clip=0.1),
}


@pytest.mark.parametrize("name", CASES)
def test_no_update_holds_a_planted_sentinel(name: str) -> None:
    """20 rounds of all devices; sentinels are all of each tower before and after, and the longest history."""
    world = make_world(CASES[name])
    arrays = {n: a.astype(np.float32) for n, a in world.arrays.items()}
    trainer = Trainer(
        shape=world.shape,
        features=world.features,
        local=world.local,
        plan=world.plan,
        trained=world.trained,
        seed=1,
    )
    towers = {n: t.float() for n, t in (world.towers or {}).items()}
    events = number_spellings(world.store.history(7)[:9])
    for round in range(20):
        secrets, sent = set(events), b""
        for user in range(world.store.n_users):
            tower = {n: t[user] for n, t in towers.items()}
            secrets |= sentinels(tower)
            update = trainer.update(round, arrays, Device(store=world.store.only(user), key=user, tower=tower))
            secrets |= sentinels(tower)
            sent += pack(update.arrays, {"round": update.round, "nonce": update.nonce})
        assert not holds(sent, secrets)
        leak = sent + pack({n: t[5].numpy() for n, t in towers.items()} or {"x": world.store.history(7)}, {})
        assert holds(leak, secrets), "the same search would see it"


def sentinels(tower: dict[str, torch.Tensor]) -> set[bytes]:
    """Return the spellings of every 64 bytes of each array of a tower, and of its shorter arrays whole."""
    found: set[bytes] = set()
    for weights in tower.values():
        values = weights.numpy().ravel()
        for begin in range(0, max(1, len(values) - 15), 16):
            found |= number_spellings(values[begin : begin + 16])
    return {needle for needle in found if len(needle) >= 8}


def user_id(user: int) -> str:
    return f"sentinel{user:02d}" + np.random.default_rng(user).bytes(27).hex()


@pytest.fixture
def imported(cache: Path, tmp_path: Path) -> str:
    """Import a log whose user ids are 64-byte sentinels, and whose times are as unique."""
    rng = np.random.default_rng(0)
    path = tmp_path / "log.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["who", "what", "when"])
        for user in range(USERS):
            for item in rng.permutation(30)[:14]:
                rows.writerow([user_id(user), f"item-{item}", int(rng.integers(1_500_000_000, 1_600_000_000))])
    import_files(ImportSpec(files=(path,), name="sentinels", user="who", item="what", time="when"))
    return "sentinels"


def config_of(name: str, engine: str) -> RunConfig:
    return parse_config(
        {
            "engine": engine,
            "threads": 1,
            "data": {"name": name},
            "model": {"dim": 8, "window": 8, "blocks": 1, "heads": 2, "hidden": 8, "user_dim": 4, "user_hidden": 8},
            "rounds": {"count": 4, "cohort": 12, "evaluate_every": 2},
            "local": {"negatives": 10, "tower_learning_rate": 0.5},
            "personal": {"steps": 2, "negatives": 10},
            "evaluation": {"central": False},
            "server": {"checkpoint_every": 1},
        }
    )


@pytest.fixture
def emitted(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Record what every device emits, as it goes over the wire."""
    sent: list[bytes] = []
    real = Trainer.update

    def recorded(self: Trainer, round: int, arrays: Arrays, device: Device, noise: NoiseSource | None = None) -> Update:
        update = real(self, round, arrays, device, noise)
        sent.append(pack(update.arrays, {"round": update.round, "nonce": update.nonce}))
        return update

    monkeypatch.setattr(Trainer, "update", recorded)
    return sent


def test_a_run_shows_nothing_private_in_updates_public_files_and_logs(
    imported: str,
    emitted: list[bytes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    out = tmp_path / "run"
    run(config_of(imported, "device"), out=out, progress=lambda *_: None)
    (last,) = sorted((out / "private").glob("devices-*.safetensors"))[-1:]
    towers = load(last.read_bytes())

    ids = set().union(*(spellings(user_id(user).encode()) for user in range(USERS)))
    assert all(len(user_id(user)) == BYTES for user in range(USERS))
    weights: set[bytes] = set()
    moved = 0
    for user in range(USERS):
        trained = towers["user.out.weight"][user].ravel()[:16]
        if trained.any():
            weights |= number_spellings(trained)
            moved += 1
    assert moved > USERS / 3, "towers trained, so that there is something to find"

    assert len(emitted) > 30 and len({len(data) for data in emitted}) == 1, "all updates have one size"
    for data in emitted:
        assert not holds(data, weights | ids)
    public = [p for p in out.rglob("*") if p.is_file() and "private" not in p.relative_to(out).parts]
    names = {p.relative_to(out).parts[0] for p in public}
    assert names >= {
        "run.json",
        "report.html",
        "config.toml",
        "model.safetensors",
        "items.safetensors",
        "ledger.jsonl",
        "checkpoints",
    }
    for path in public:
        data = path.read_bytes()
        assert not holds(data, weights), path
        assert not holds(data, ids), path
    assert holds(last.read_bytes(), weights), "the same search finds them where they are"

    captured = capfd.readouterr()
    for text in (caplog.text, captured.out, captured.err):
        assert not holds(text.encode(), ids | weights)
        assert "sentinel0" not in text


# The sampler is the accountant's.

DEVICES, RATE, ROUNDS = 80, 0.25, 250


def test_the_loops_cohorts_are_what_the_accountant_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """250 rounds of the real loop. Power: a rate 20 % off is refused always."""
    cohorts: list[np.ndarray] = []
    real = Cohort.collect

    def recorded(
        self: Cohort, round: int, arrays: Arrays, users: np.ndarray, towers: Towers | None = None
    ) -> CohortSum:
        cohorts.append(users)
        return real(self, round, arrays, users, towers)

    monkeypatch.setattr(Cohort, "collect", recorded)
    world = make_world(Case(histories=tuple([u % 12, 1] for u in range(DEVICES)), blocks=0, features=0, types=1))
    config = parse_config(
        {
            "threads": 1,
            "start": {"enabled": False},
            "privacy": {"epsilon": "null"},
            "rounds": {"count": ROUNDS, "cohort": RATE * DEVICES, "train": ["transformer.out."]},
            "local": {"negatives": 2},
            "server": {"checkpoint_every": ROUNDS},
        }
    )
    plan = plan_for(config, DEVICES)
    assert plan.mechanism("rounds").sample_rate == RATE and plan.mechanism("rounds").steps == ROUNDS
    training = World(config=config, plan=plan, store=world.store, features=None, shape=world.shape)
    train(training, tmp_path, resume=False, validate=None, progress=lambda *_: None)

    joined = np.zeros((ROUNDS, DEVICES), dtype=bool)
    for row, cohort in zip(joined, cohorts, strict=True):
        row[cohort] = True
        assert row.sum() == len(cohort)
    sizes = joined.sum(axis=1)
    assert chi2_binomial_p(sizes, DEVICES, RATE) > 1e-4
    assert chi2_binomial_p(sizes, DEVICES, RATE * 1.2) < 1e-4
    each = (joined.sum(axis=0) - ROUNDS * RATE) ** 2 / (ROUNDS * RATE * (1 - RATE))
    assert stats.chi2.sf(each.sum(), DEVICES) > 1e-4
    together = np.corrcoef(joined.T)[np.triu_indices(DEVICES, 1)] * np.sqrt(ROUNDS)
    assert stats.kstest(together, "norm").pvalue > 1e-4
    again = [np.corrcoef(joined[1:, u], joined[:-1, u])[0, 1] * np.sqrt(ROUNDS) for u in range(DEVICES)]
    assert stats.kstest(again, "norm").pvalue > 1e-4
