"""Checks of a run's folder: what it says of itself, against its own files and against the arithmetic."""

import shutil
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.models.recall import ITEM_ID
from fedrecall.privacy.ledger.chain import Chain
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.allow_list import SHARED_PREFIXES
from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.item_table import ItemTable
from fedrecall.server.recall.release import load_release
from fedrecall.server.training.checkpoint import load_latest
from fedrecall.simulations.audit.checks.conformance import least_epsilon
from fedrecall.simulations.audit.checks.noise import judged
from fedrecall.simulations.audit.checks.released import file_faults, released_as_noised
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.draws import Draws, groups_of, standardised
from fedrecall.simulations.audit.watching.opened import Opened, ledger_plan
from fedrecall.simulations.audit.watching.trial import Trial, accounted
from fedrecall.simulations.audit.watching.watch import Watched, watch
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.runs.sections import versions
from fedrecall.simulations.training.world import Progress

_LEDGER = "ledger.jsonl"
_PUBLISHED = ("run.json", "report.html", "config.toml", "manifest.json", "index.json", _LEDGER)
_SEARCHED = 500
_LETTERS = 5
_IN_A_ROW = 5
_SHORT = 50
_REPLAY = (
    "The last rounds were trained again from the ledger, an older checkpoint and the data: the same weights must come "
    "out, and the ledger must see no new charge"
)
_REPLAY_POWER = "a release that plan, seed, data and code do not give: other noise, other cohorts, other data"


def check_folder(opened: Opened) -> list[Attempt]:
    """Run every check of the folder that needs no training."""
    found = []
    for name, check, what, power in (
        (
            "folder: release",
            _release,
            "Every released file was hashed against the manifest, and plan, round and stamp of manifest, ledger and "
            "run.json were compared; the newest checkpoint must hold the released weights",
            "one changed byte of a released file, another plan, a missing stamp, a private weight among the released",
        ),
        (
            "folder: ledger",
            _ledger,
            "The ledger's chain was replayed and its charges compared with the plan's releases, one by one",
            "an edited, missing or moved line, a release that was charged twice or never",
        ),
        (
            "folder: claims",
            _claims,
            "The epsilons of run.json were worked out again from the ledger's plan, by the project's accountant and, "
            "without amplification, by the closed form",
            "any epsilon that is smaller than the plan allows, by 1e-6",
        ),
        (
            "folder: private texts",
            _texts,
            "The files for publication and the logs were searched for users' ids, for five of a user's items in a "
            "row, and for the place of the data",
            f"ids of at least {_LETTERS} characters and item sequences of {_SEARCHED} users, written out as text",
        ),
    ):
        began = time.perf_counter()
        try:
            hits, trials = check(opened)
        except FedrecallError as error:
            hits, trials = [str(error)], 1
        found.append(_row(opened, name, began, hits, what=what, power=power, trials=trials))
    return found


def _release(opened: Opened) -> tuple[list[str], int]:
    release, run = load_release(opened.folder), opened.run["privacy"]
    plan = Ledger.read(opened.folder / _LEDGER).plan
    manifest, hits = release.manifest, []
    for who, digest in (("manifest", manifest.plan_digest), ("run.json", run["plan_sha256"])):
        if digest != plan.digest():
            hits.append(f"{who} names another plan than the ledger")
    if manifest.round != plan.mechanism("rounds").steps:
        hits.append(f"the release is of round {manifest.round}, the plan has {plan.mechanism('rounds').steps}")
    # Whoever knows the configuration knows the seed, and so the noise.
    if not (manifest.simulated and run["simulated"] and plan.simulated):
        hits.append("the noise came from the seed of the configuration, and a file does not say simulated")
    hits += [f"{name} was released and is not shared" for name in release.model if not name.startswith(SHARED_PREFIXES)]
    hits += ledger_plan(opened, plan)
    saved = load_latest(opened.folder / "checkpoints")
    if saved is not None:
        arrays = {**saved.arrays, **(saved.average.arrays if saved.average else {})}
        known = opened.dataset is not None or not opened.config.model.features
        hits += file_faults(release, arrays, opened.world.features) if known else _differences(opened, arrays)
    return hits, len(release.model) + 1


def _ledger(opened: Opened) -> tuple[list[str], int]:
    path = opened.folder / _LEDGER
    ledger = Ledger.read(path)
    charged = Counter((e["mechanism"], e["round"]) for e in Chain.read(path).entries[1:])
    hits = [f"{name} {round} was charged {n} times" for (name, round), n in charged.items() if n > 1]
    for mechanism in ledger.plan.mechanisms:
        missing = [r for r in range(mechanism.steps) if not charged[mechanism.name, r]]
        hits += [f"{mechanism.name} {round} was released and never charged" for round in missing[:5]]
    head = load_release(opened.folder).manifest.ledger_head
    if head is None or not ledger.holds(head):
        hits.append("the ledger does not continue the head that the manifest keeps")
    return hits, sum(charged.values())


def _claims(opened: Opened) -> tuple[list[str], int]:
    plan, said = Ledger.read(opened.folder / _LEDGER).plan, opened.run["privacy"]
    rows = {row.name: asdict(row) for row in accounted(plan)}
    hits = []
    for row in said["adversaries"]:
        least = rows[row["name"]]["epsilon"]
        if row["epsilon"] is not None and (least is None or row["epsilon"] < least - 1e-6):
            hits.append(f"{row['name']} is claimed at {row['epsilon']:.4f}, the plan gives {least}")
        if row["delta"] != plan.delta or row["unit"] != plan.unit:
            hits.append(f"{row['name']} is claimed for another delta or unit than the plan's")
    if set(rows) != {row["name"] for row in said["adversaries"]}:
        hits.append("an adversary has no row")
    network = next((row["epsilon"] for row in said["adversaries"] if row["name"] == "network"), None)
    least = least_epsilon(plan)
    if network is not None and (least is None or network < least - 1e-6):
        hits.append(f"network is claimed at {network:.4f}, the closed form gives {least}")
    return hits, len(rows)


def _texts(opened: Opened) -> tuple[list[str], int]:
    folder, secrets = opened.folder, _secrets(opened)
    files = [folder / name for name in _PUBLISHED] + sorted((folder / "logs").glob("*"))
    hits = []
    for path in (p for p in files if p.is_file()):
        text = path.read_text(encoding="utf-8", errors="replace")
        hits += [f"{path.name} holds {what}" for secret, what in secrets.items() if secret in text]
    return hits, len(secrets)


def _secrets(opened: Opened) -> dict[str, str]:
    """Return texts that must not be in a published file, and what they are."""
    found: dict[str, str] = {}
    if opened.config.data.path is not None:
        found[str(opened.config.data.path.absolute())] = "the place of the data"
    if opened.dataset is None:
        return found
    ids, items = opened.dataset.user_ids, opened.dataset.catalogue.ids
    for user in range(min(_SEARCHED, len(ids))):
        if len(ids[user]) >= _LETTERS:
            found[ids[user]] = "a user's id"
        row = opened.world.store.history(user)[-_IN_A_ROW:].tolist()
        if len(row) == _IN_A_ROW:
            for spelled in ([items[i] for i in row], [str(i) for i in row]):
                found |= {mark.join(spelled): "a user's items" for mark in (",", ", ", " ", '", "')}
    return found


def replay(opened: Opened, scratch: Path, *, deep: bool, progress: Progress) -> list[Attempt]:
    """Train again from an older checkpoint, or from the start, and compare with what was released, bit by bit."""
    began, name, power = time.perf_counter(), "folder: replay", _REPLAY_POWER
    if opened.dataset is None:
        return [_skipped(opened, name, began, f"the data are missing ({opened.missing})", power)]
    older = sorted((opened.folder / "checkpoints").glob("round-*.safetensors"))[:-1]
    if not older and opened.world.plan.mechanism("rounds").steps > _SHORT and not deep:
        return [_skipped(opened, name, began, "only the newest checkpoint is left; use --deep", power)]
    try:
        seen, hits = _trained_again(opened, older[-1] if older else None, scratch, progress)
    except FedrecallError as error:
        return [_skipped(opened, name, began, f"it could not be trained again ({error})", power)]
    return [_replayed(opened, began, older, hits), *_of_its_rounds(opened, scratch, seen)]


def _replayed(opened: Opened, began: float, older: list[Path], hits: list[str]) -> Attempt:
    name, power = "folder: replay", _REPLAY_POWER
    mine, theirs = versions(), opened.run["versions"]
    if hits and mine != theirs:
        other = ", ".join(sorted(k for k in mine | theirs if mine.get(k) != theirs.get(k)))
        return _skipped(opened, name, began, f"it differs, and so do the versions of {other}", power)
    if hits and opened.config.engine == "flower" and opened.config.flower.shards is None:
        reason = "it differs, and the number of Flower's nodes, in whose order sums are made, is each machine's own"
        return _skipped(opened, name, began, reason, power)
    rounds = opened.world.plan.mechanism("rounds").steps - (int(older[-1].stem[6:]) if older else 0)
    return _row(opened, name, began, hits, what=_REPLAY, power=power, trials=rounds)


def _of_its_rounds(opened: Opened, scratch: Path, seen: Watched) -> list[Attempt]:
    """Judge the run's own last rounds, as they were trained again: what they released, and under which noise."""
    if not seen.rounds and not seen.faults:
        return []
    trial = Trial(opened.world, scratch, opened.config.seed)
    found = [released_as_noised(trial, "released: replayed rounds", time.perf_counter(), [seen])]
    mechanism = trial.rounds
    if seen.rounds and mechanism.noise_multiplier and trial.plan.trust == "central":
        known = np.array([r.collected for r in seen.rounds])
        noise = standardised(trial, seen, np.array([r.released for r in seen.rounds]) - known)
        draws = Draws(values=noise, groups=groups_of(seen), signals=known, ordered=True)
        found.append(judged(trial, "noise: replayed rounds", time.perf_counter(), draws))
    return found


def _trained_again(opened: Opened, saved: Path | None, scratch: Path, progress: Progress) -> tuple[Watched, list[str]]:
    """Train in ``scratch`` from the checkpoint ``saved`` on, or from the start; return what comes out otherwise."""
    scratch.mkdir(parents=True, exist_ok=True)
    for path in (opened.folder / _LEDGER, opened.folder / f"{_LEDGER}.head"):
        shutil.copy(path, scratch / path.name)
    if saved is not None:
        towers = opened.folder / "private" / saved.name.replace("round", "devices")
        for path in (path for path in (saved, towers) if path.exists()):
            (scratch / path.parent.name).mkdir(exist_ok=True)
            shutil.copy(path, scratch / path.parent.name / path.name)
    head = Ledger.read(scratch / _LEDGER).head()
    seen = watch(opened.world, scratch, progress=progress, resume=True)
    again = seen.trained
    if again is None:
        return seen, ["nothing was trained"]
    charged = ["the ledger was charged anew: the noise has other names"] if again.ledger_head != head else []
    return seen, _differences(opened, again.arrays) + charged


def _differences(opened: Opened, arrays: dict[str, np.ndarray]) -> list[str]:
    """Return which of ``arrays`` are not as released."""
    release = load_release(opened.folder)
    hits = [
        f"{name} is not as released"
        for name, array in release.model.items()
        if name not in arrays or not np.array_equal(array, arrays[name])
    ]
    if ITEM_ID in arrays and (opened.dataset is not None or not opened.config.model.features):
        features = opened.world.features
        table = ItemTable.from_vectors(item_vectors(arrays, features), release.items.ids)
        if table.to_bytes() != release.items.to_bytes():
            hits.append("the item table is not as released")
    return hits


def _row(opened: Opened, name: str, began: float, hits: list[str], *, what: str, power: str, trials: int) -> Attempt:
    said = f". Found: {'; '.join(hits[:3])}" if hits else ""
    return Attempt(
        name=name,
        adversary="auditor",
        unit="-",
        what=f"{what}{said}.",
        score=float(len(hits)),
        metric="hits",
        chance=0.0,
        power=power,
        verdict="broken" if hits else "held",
        trials=trials,
        seconds=round(time.perf_counter() - began, 3),
        detail={"hits": hits[:20]},
    )


def _skipped(opened: Opened, name: str, began: float, reason: str, power: str) -> Attempt:
    detail: dict[str, Any] = {"run": opened.folder.name}
    return Attempt(
        name=name,
        adversary="auditor",
        unit="-",
        what=f"Not tested: {reason}.",
        score=None,
        metric="hits",
        power=power,
        verdict="not tested",
        trials=0,
        seconds=round(time.perf_counter() - began, 3),
        detail=detail,
    )
