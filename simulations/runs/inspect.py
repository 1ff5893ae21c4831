"""Finished runs, opened again: their figures measured anew, and what one of their devices would recommend."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int32, Int64

from fedrecall.client.events.spelling import shape
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.item_table import ItemTable
from fedrecall.server.recall.release import load_release
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits import Split
from fedrecall.simulations.report.compare import read_run
from fedrecall.simulations.runs.data import data_of
from fedrecall.simulations.runs.folder import check_recorded, located, read_config, read_data_reference
from fedrecall.simulations.runs.recaller import ModelRecaller, released
from fedrecall.simulations.runs.wiring import measure, split_of
from fedrecall.simulations.training.loop import load_towers
from fedrecall.simulations.training.world import Progress

_BECAUSE_OF = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Finished:
    """A finished run with its data.

    Attributes:
        folder: of the run.
        run: its ``run.json``.
        config: its configuration.
        dataset: its data.
        split: of them.
        items: the released item table, checked against the manifest.
        model: the release as its devices use it.
    """

    folder: Path
    run: dict[str, Any]
    config: RunConfig
    dataset: Dataset
    split: Split
    items: ItemTable
    model: ModelRecaller


def evaluate_run(
    folder: Path, split: Literal["validation", "test"], progress: Progress, *, data_path: Path | None = None
) -> dict[str, Any]:
    """Measure the verified release of a finished run again, as the run did.

    Args:
        folder: of the run.
        split: the held-out part.
        progress: told how far it is.
        data_path: where the data lies now, if it was moved.

    Returns:
        ``run``, ``split``, ``users`` (how many), ``metrics``, ``groups``, and ``as_recorded``: whether ``run.json``
        has the same metrics.

    Raises:
        UsageError: no finished run, or its data is not where it was, or other data.
        CorruptArtefact: the release is not what its manifest says, or the configuration is not the run's.
    """
    opened = open_finished(folder, progress, data_path=data_path)
    found = measure(opened.model, opened.dataset, opened.split, split, opened.config, progress)
    return {
        "run": str(folder),
        "split": split,
        "users": len(found.users),
        "metrics": found.metrics,
        "groups": {name: asdict(group) for name, group in found.groups.items()},
        "as_recorded": found.metrics == opened.run["metrics" if split == "test" else "validation"],
    }


def recommend(folder: Path, user: str, k: int, progress: Progress, *, data_path: Path | None = None) -> dict[str, Any]:
    """Return what the device of ``user`` would recommend: exact search over the released items.

    Its own are left out, unless the run recommends repeats.

    The device knows the events before its test target. One that knows none gets the model's answer to an empty
    history: what the model holds for popular, since no device sees more of popularity than was released.

    Returns:
        ``run``, ``user``, ``repeats``, ``items`` (``item``, ``title``, ``score``, best first; fewer than ``k`` where no
        more are left) and ``because_of``: its latest events (``item``, ``title``), latest first.

    Raises:
        UsageError: no such user (nobody else is named), or as ``evaluate_run``.
        CorruptArtefact: as ``evaluate_run``.
    """
    return recommended(open_finished(folder, progress, data_path=data_path), user, k)


def recommended(opened: Finished, user: str, k: int) -> dict[str, Any]:
    """Return what ``recommend`` does, of a run that is open."""
    ids = opened.dataset.user_ids
    if user not in ids:
        hint = f"their identifiers look like {shape(ids[0])!r} (letters as a, digits as 9)"
        raise UsageError(f"--user is {user!r}, who is not among the {len(ids)} users of this run's data: {hint}")
    row = np.array([ids.index(user)])
    history = opened.split.test_context.history(int(row[0]))
    found, scores = lists_of(opened, row, k)
    catalogue = opened.dataset.catalogue
    return {
        "run": str(opened.folder),
        "user": user,
        "repeats": opened.split.repeats,
        "items": [
            {"item": catalogue.ids[i], "title": catalogue.titles[i], "score": float(score)}
            for i, score in zip(found[0], scores[0], strict=True)
            if i >= 0
        ],
        "because_of": [
            {"item": catalogue.ids[i], "title": catalogue.titles[i]} for i in history[::-1][:_BECAUSE_OF].tolist()
        ],
    }


def lists_of(
    opened: Finished, users: Int64[np.ndarray, "users"], k: int
) -> tuple[Int32[np.ndarray, "users k"], Float32[np.ndarray, "users k"]]:
    """Return the ``k`` best items of each device, its own left out unless the run recommends repeats, and their scores.

    As ``ItemTable.search``: item -1 where no more are left. A device knows the events before its test target.
    """
    context = opened.split.test_context
    masked = opened.split.repeats == "mask"
    own = [np.unique(context.history(user)) for user in users.tolist()] if masked else None
    return opened.items.search(opened.model.queries(users, context), k, own)


def open_finished(folder: Path, progress: Progress, *, data_path: Path | None = None) -> Finished:
    """Load configuration, release and data of a finished run, and check that they belong together.

    Raises:
        UsageError, CorruptArtefact: as ``evaluate_run``.
    """
    run = read_run(folder)
    config = read_config(folder)
    check_recorded(folder, config, run.get("config"))
    release = load_release(folder)
    reference = read_data_reference(folder)
    path = data_path or (reference.path if reference else None)
    if data_path is None and path is not None and not path.is_dir():
        raise UsageError(f"the data of {folder} was in {path}, which is not there: say where with --data-path")
    config = located(config, path)
    dataset = data_of(folder, config, progress)
    if dataset.sha256 != run["dataset"]["sha256"]:
        raise UsageError(f"{config.data.name} is not the data that {folder} was made with: name it with --data-path")
    towers = load_towers(folder, release.manifest.round) if config.local.tower_learning_rate else None
    split, _, shape = split_of(config, dataset)
    model = released(config, shape, release.model, release.items, towers, name=str(folder))
    return Finished(
        folder=folder, run=run, config=config, dataset=dataset, split=split, items=release.items, model=model
    )
