"""``fedrecall audit``: everything that tries to break a finished run's promises, and the report of it."""

import hashlib
import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedrecall.protocol.errors import CorruptArtefact
from fedrecall.protocol.files import read_bounded, write_json_atomic
from fedrecall.protocol.jsontext import dumps
from fedrecall.server.training.checkpoint import load_latest
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.simulations.audit.attacks.steps import SHARES, Step, attack_steps
from fedrecall.simulations.audit.checks.all import CHECKS, attempt_check
from fedrecall.simulations.audit.checks.folder import check_folder, replay
from fedrecall.simulations.audit.page import write_page
from fedrecall.simulations.audit.time_left import TimeLeft
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.opened import Opened, open_run
from fedrecall.simulations.audit.watching.trial import CONFIDENCE, DECISIONS, FAMILY, LEVEL, Trial
from fedrecall.simulations.runs.sections import versions
from fedrecall.simulations.training.world import Progress

AUDIT_JSON, AUDIT_HTML = "audit.json", "audit.html"
NEVER_TESTED = (
    "Secure aggregation and trust 'distributed': they have not landed.",
    "A deployment over the network: what is sent was seen at the collectors, not on a wire.",
    "Whether the generator of a deployment's noise is secret: a simulation's noise is from a known seed.",
    "The number and order of messages, the time of a device's answer beside its own part of a round (reading events, "
    "writing its ledger), and what a device does after it recommends.",
)
"""What no audit of a run folder looks at."""

_ROUNDS, _CANARIES, _ATTACKS_S = 10, 200, 390.0
_DEEP_CANARIES, _DEEP_ATTACKS_S = 1000, 3600.0
_STEPS = Path("private") / "audit"
_MAX_BYTES = 1 << 26


def audit_run(
    folder: Path, *, attach: bool = False, deep: bool = False, data_path: Path | None = None, progress: Progress
) -> dict[str, Any]:
    """Audit the finished run in ``folder``; write ``audit.json`` and ``audit.html`` into it and return the former.

    Every step's result is kept under ``private/audit`` until all are done, so that an audit that was interrupted goes
    on where it stopped. A deep audit takes all rounds, more canaries and an hour of attacks.

    Args:
        folder: of the run.
        attach: the folder may be a copy from elsewhere: what its data are needed for is reported as not tested, and
            the rest is tested on generated events in their place.
        deep: see above.
        data_path: where the data lie now.
        progress: told how far it is.

    Raises:
        UsageError: there is no finished run, or its data are missing and ``attach`` is not set.
        CorruptArtefact: the configuration is not the run's.
    """
    began = time.perf_counter()
    opened = open_run(folder, attach=attach, data_path=data_path, progress=progress)
    if opened.config.threads:
        torch.set_num_threads(opened.config.threads)
    kept = _Kept(folder / _STEPS, _key(opened, deep))
    told = TimeLeft(progress, _expected(opened, deep))
    with tempfile.TemporaryDirectory(prefix="fedrecall-audit-") as scratch:
        steps = _steps(opened, Path(scratch), deep=deep, progress=told)
        attempts: list[Attempt] = []
        for name, step in steps.items():
            told.begin(name)
            attempts += kept.of(name, step)
    result = _result(opened, attempts, deep=deep, seconds=round(time.perf_counter() - began, 1))
    write_page(result, folder / AUDIT_HTML)
    write_json_atomic(folder / AUDIT_JSON, result)
    kept.clear()
    return result


def _steps(opened: Opened, scratch: Path, *, deep: bool, progress: Progress) -> dict[str, Step]:
    """Return everything that is to be done, in order; each step is a function of the run and the seed alone."""
    trial = Trial(
        opened.world,
        scratch / "trial",
        opened.config.seed,
        _DEEP_CANARIES if deep else _CANARIES,
        progress,
        most_rounds=None if deep else _ROUNDS,
    )
    steps: dict[str, Step] = {"folder": lambda: check_folder(opened)}
    steps |= {name: partial(attempt_check, trial, name, check) for name, check in CHECKS.items()}
    steps["replay"] = lambda: replay(opened, scratch / "replay", deep=deep, progress=progress)
    return steps | _attacks(opened, _DEEP_ATTACKS_S if deep else _ATTACKS_S, progress)


def _expected(opened: Opened, deep: bool) -> dict[str, float]:
    """Return the seconds of the steps that take long: those that train, as the run did, and the attacks."""
    planned = opened.world.plan.mechanism(ROUNDS).steps
    rounds = planned if deep else min(planned, _ROUNDS)
    seconds = opened.run["timing"]["train_s"] * rounds / max(1, planned)
    attacks = _DEEP_ATTACKS_S if deep else _ATTACKS_S
    trained = dict.fromkeys(("noise on zero signal", "noise in the run", "replay"), seconds)
    return trained | {f"attacks: {kind}": share * attacks for kind, share in SHARES.items()}


def _attacks(opened: Opened, seconds: float, progress: Progress) -> dict[str, Step]:
    saved = load_latest(opened.folder / "checkpoints") if opened.dataset is not None else None
    if saved is None:
        reason = f"the data are missing ({opened.missing})" if opened.dataset is None else "there is no checkpoint"
        return {"attacks": lambda: [_untested("attacks", f"Not tested: {reason}.")]}
    arrays = {**saved.arrays, **(saved.average.arrays if saved.average else {})}
    groups = None if opened.dataset is None else opened.dataset.groups
    steps = attack_steps(opened.world, arrays, opened.config.seed, seconds, progress, groups=groups)
    return {f"attacks: {kind}": step for kind, step in steps.items()}


def _untested(name: str, what: str) -> Attempt:
    return Attempt(
        name=name,
        adversary="server",
        unit="-",
        what=what,
        score=None,
        metric="hits",
        power="none",
        verdict="not tested",
        trials=0,
        seconds=0.0,
    )


def _untested_by_reason(attempts: list[Attempt]) -> list[str]:
    """Return one sentence a reason, with the attempts that it kept from being made."""
    reasons: dict[str, list[str]] = {}
    for attempt in attempts:
        if attempt.verdict == "not tested":
            reasons.setdefault(attempt.what.removeprefix("Not tested: ").rstrip("."), []).append(attempt.name)
    return [f"{reason[0].upper()}{reason[1:]}: {', '.join(names)}." for reason, names in reasons.items()]


def _result(opened: Opened, attempts: list[Attempt], *, deep: bool, seconds: float) -> dict[str, Any]:
    privacy = opened.run["privacy"]
    broken = [a.name for a in attempts if a.verdict == "broken"]
    stand_in = "" if opened.dataset is not None else f"generated events in their place: {opened.missing}"
    return {
        "run": opened.folder.resolve().name,
        "verdict": "broken" if broken else "held",
        "broken": broken,
        "claims": {k: privacy[k] for k in ("unit", "trust", "simulated", "delta", "plan_sha256", "adversaries")},
        "attempts": [a.to_dict() for a in attempts],
        "not_tested": [*_untested_by_reason(attempts), *NEVER_TESTED],
        "settings": {
            "deep": deep,
            "data": stand_in or "the run's own",
            "rounds": opened.world.plan.mechanism(ROUNDS).steps if deep else _ROUNDS,
            "canaries": _DEEP_CANARIES if deep else _CANARIES,
            "false_alarms": FAMILY,
            "confidence": CONFIDENCE,
            "decisions": DECISIONS,
            "level": LEVEL,
        },
        "dataset": {k: opened.run["dataset"][k] for k in ("name", "users", "items")},
        "seconds": seconds,
        "versions": versions(),
    }


def _key(opened: Opened, deep: bool) -> str:
    """Return what the kept results of steps depend on."""
    said = [opened.run["privacy"], opened.run["config"], deep, opened.missing, versions()]
    return hashlib.sha256(dumps(said).encode()).hexdigest()


class _Kept:
    """Results of steps on disk, for an audit that goes on."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder, self._key = folder, key

    def of(self, name: str, step: Step) -> list[Attempt]:
        """Return what ``step`` said before, or says now."""
        path = self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
        if path.exists():
            try:
                said = json.loads(read_bounded(path, max_bytes=_MAX_BYTES))
                if said["key"] == self._key:
                    return [Attempt(**attempt) for attempt in said["attempts"]]
            except (ValueError, KeyError, TypeError) as error:
                raise CorruptArtefact(f"{path} cannot be read ({error}): delete {self._folder}") from error
        found = step()
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, {"key": self._key, "step": name, "attempts": [a.to_dict() for a in found]})
        return found

    def clear(self) -> None:
        """Forget them all."""
        shutil.rmtree(self._folder, ignore_errors=True)
