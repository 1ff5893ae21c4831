"""What leaves: every released state is worked out again from the noised means, and so are the files of the release."""

import time
from collections.abc import Sequence

import numpy as np

from fedrecall.models.recall import ITEM_ID
from fedrecall.protocol.records import Arrays
from fedrecall.server.recall.release import ReleaseFiles
from fedrecall.simulations.audit.watching.at_length import at_length
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.redone import ULPS, overlaid
from fedrecall.simulations.audit.watching.trial import Trial
from fedrecall.simulations.audit.watching.watch import Watched
from fedrecall.simulations.runs import run

_LEVELS = 127
_ROUNDING = 1e-3
"""Of a level: items' vectors are made in float32, and rows' scales are float16."""


def rounds(trial: Trial) -> list[Attempt]:
    """Report what the trainings released that is no function of the noised means."""
    if not trial.rounds.steps:
        return []
    began = time.perf_counter()
    trainings = [seen for seen in (trial.watched, trial.noise, at_length(trial)[1]) if seen is not None]
    return [released_as_noised(trial, "released: rounds", began, trainings)]


def released_as_noised(trial: Trial, name: str, began: float, trainings: Sequence[Watched]) -> Attempt:
    """Return the attempt ``name``: whether ``trainings`` released functions of their noised means alone."""
    return _found(
        trial,
        name,
        began,
        [fault for seen in trainings for fault in seen.faults],
        what="After every round the released weights, the optimiser's state and the average were worked out again "
        "from those before and from the noised mean alone, in the audit's own arithmetic; the next cohort must be "
        "shown them to the bit, and checkpoint and result must hold them",
        power=f"anything that was added between the noise and the weights, above {ULPS:.0f} roundings of them",
        trials=sum(len(seen.rounds) for seen in trainings),
    )


def files(trial: Trial) -> list[Attempt]:
    """Write the release of the watched training as a run does, and read it against the last state."""
    seen = trial.watched
    if seen.last is None or seen.trained is None:
        return []
    began, world = time.perf_counter(), trial.enrolled[0]
    ids = [f"item {number}" for number in range(world.shape.n_items)]
    released = run.released_files(trial.folder / "released", world, ids, seen.trained)
    faults = file_faults(released, overlaid(seen.last), world.features)
    return [
        _found(
            trial,
            "released: files",
            began,
            faults,
            what="The files of the release were written as a run writes them, and every number in them was compared "
            "with the last state that rounds released",
            power="one changed bit of a weight, an item's vector that moved by a thousandth of a level of its row",
            trials=len(released.model) + 1,
        )
    ]


def file_faults(release: ReleaseFiles, arrays: Arrays, features: np.ndarray | None) -> list[str]:
    """Return where the files of a release are not those of ``arrays``; the table's levels are worked out again."""
    faults = [
        f"{name} is not as released"
        for name in sorted({*release.model, *arrays} - {ITEM_ID})
        if name not in release.model or name not in arrays or not np.array_equal(release.model[name], arrays[name])
    ]
    vectors = np.asarray(arrays[ITEM_ID], dtype=np.float64)
    if features is not None:
        vectors = (
            vectors
            + np.asarray(features, dtype=np.float64) @ np.asarray(arrays["item.features.weight"], dtype=np.float64).T
        )
    scales = release.items.scales.astype(np.float64)
    wanted = np.abs(vectors).max(axis=1) / _LEVELS
    # Scales are rounded up to float16: by 2^-10 of themselves, or by the smallest number that it has.
    room = wanted * 2.0**-10 + 2.0**-24
    if scales.shape != wanted.shape or not ((scales >= wanted * (1 - 1e-6)) & (scales <= wanted + room)).all():
        return [*faults, "the scales of the item table are not those of the released vectors"]
    levels = vectors / np.where(scales > 0, scales, 1.0)[:, None]
    if not (np.abs(release.items.codes - levels) <= 0.5 + _ROUNDING).all():
        faults.append("the item table is not that of the released vectors")
    return faults


def _found(trial: Trial, name: str, began: float, faults: list[str], *, what: str, power: str, trials: int) -> Attempt:
    said = f". Found: {'; '.join(faults[:3])}" if faults else ""
    return trial.attempt(
        name,
        began,
        adversary="released-model",
        what=f"{what}{said}.",
        score=float(len(faults)),
        metric="hits",
        chance=0.0,
        power=power,
        verdict="broken" if faults else "held",
        trials=trials,
        detail={"faults": faults[:20]},
    )
