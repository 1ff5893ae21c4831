"""The seeded-bug suite: every planted bug must be caught by name, and no clean run may raise an alarm."""

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

from fedrecall.simulations.audit.checks.all import check_world
from fedrecall.simulations.audit.planting.seeded_bugs import BUGS, SeededBug, world_of
from fedrecall.simulations.audit.planting.subjects import CANARIES, SUBJECTS, subject
from fedrecall.simulations.audit.watching.trial import CONFIDENCE, Trial

T = TypeVar("T")

CLEAN = 100
"""Clean runs of the whole suite."""


@dataclass(frozen=True, kw_only=True)
class Caught:
    """What the audit said of one planted bug.

    Attributes:
        bug: its name.
        subject: the world that it was planted in.
        by: the checks of ``SeededBug.caught_by`` that said ``broken``; empty when it got through.
        confidence: of the surest of them; ``None`` where there is no chance in it.
        canaries: devices that were enrolled.
        seconds: it took.
    """

    bug: str
    subject: str
    by: tuple[str, ...]
    confidence: float | None
    canaries: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Clean:
    """What the audit said of one sound run: ``alarms`` are the checks that said ``broken``."""

    subject: str
    seed: int
    alarms: tuple[str, ...]
    seconds: float


def audit_bug(bug: SeededBug, seed: int = 0) -> Caught:
    """Plant ``bug``, audit its world, and say which of the checks that ought to see it did."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, bug.plant():
        found = check_world(Trial(world_of(bug, seed), Path(folder), seed, CANARIES[bug.subject]))
    seen = [a for a in found if a.verdict == "broken" and a.name in bug.caught_by]
    sure = [a.confidence for a in seen]
    return Caught(
        bug=bug.name,
        subject=bug.subject,
        by=tuple(a.name for a in seen),
        confidence=None if not sure or None in sure else CONFIDENCE,
        canaries=CANARIES[bug.subject],
        seconds=round(time.perf_counter() - began, 1),
    )


def audit_clean(kind: str, seed: int) -> Clean:
    """Audit a sound run of a small world."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = check_world(Trial(subject(kind, seed), Path(folder), seed, CANARIES[kind]))
    alarms = tuple(a.name for a in found if a.verdict == "broken")
    return Clean(subject=kind, seed=seed, alarms=alarms, seconds=round(time.perf_counter() - began, 1))


def run_suite(
    *, clean: int = CLEAN, workers: int = 2, progress: Callable[[str, int, int], None] = lambda *_: None
) -> tuple[list[Caught], list[Clean]]:
    """Audit every bug and ``clean`` sound runs, the kinds of worlds in turn, on so many processes."""
    kinds = [(SUBJECTS[i % len(SUBJECTS)], i) for i in range(clean)]
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        caught = _told(pool.map(_bug, range(len(BUGS))), "seeded bugs", len(BUGS), progress)
        sound = _told(pool.map(audit_clean, *zip(*kinds, strict=True)), "clean runs", clean, progress) if clean else []
    return caught, sound


def _bug(number: int) -> Caught:
    return audit_bug(BUGS[number])


def _told(results: Iterable[T], stage: str, total: int, progress: Callable[[str, int, int], None]) -> list[T]:
    found = []
    for result in results:
        found.append(result)
        progress(stage, len(found), total)
    return found


def as_text(caught: Sequence[Caught], sound: Sequence[Clean]) -> str:
    """Return the table of bugs, the alarms of clean runs, and the line that sums both up."""
    rows = [("seeded bug", "world", "caught by", "confidence", "canaries", "s")]
    for one in caught:
        sure = "certain" if one.confidence is None else f"{one.confidence:.1%}"
        by = ", ".join(one.by) or "MISSED"
        rows.append((one.bug, one.subject, by, sure if one.by else "-", str(one.canaries), f"{one.seconds:.1f}"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"FALSE ALARM in {run.subject}, seed {run.seed}: {', '.join(run.alarms)}" for run in sound if run.alarms]
    missed = sum(not one.by for one in caught)
    alarms = sum(bool(run.alarms) for run in sound)
    lines.append(f"seeded bugs caught {len(caught) - missed} of {len(caught)}, false alarms {alarms} of {len(sound)}")
    return "\n".join(lines)


def passed(caught: Sequence[Caught], sound: Sequence[Clean]) -> bool:
    """Whether every bug was caught and no clean run raised an alarm."""
    return all(one.by for one in caught) and not any(run.alarms for run in sound)
