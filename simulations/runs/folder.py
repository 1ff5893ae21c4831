"""A run's folder: choosing it, refusing what does not belong to it, and saying where its data came from."""

import io
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedrecall.protocol.errors import CorruptArtefact, FedrecallError, UsageError
from fedrecall.protocol.files import read_bounded, remove_leftovers, write_atomic, write_json_atomic
from fedrecall.simulations.config import RunConfig, load_config, to_toml
from fedrecall.simulations.data.dataset import Dataset

if TYPE_CHECKING:
    from fedrecall.simulations.evaluation.evaluate import Evaluation  # loads torch

RUNS = Path("runs")
LATEST = RUNS / "latest"
CONFIG, RUN_JSON, REPORT = "config.toml", "run.json", "report.html"
PRIVATE = "private"
_DATA = Path(PRIVATE) / "data.json"
PER_USER = Path(PRIVATE) / "per_user.npz"
_MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DataReference:
    """Where a run's data was: its folder (``None`` for the cache), and the hash of its files."""

    path: Path | None
    sha256: str


def choose_folder(config: RunConfig, out: Path | None, *, resume: bool) -> Path:
    """Return the folder of a run; nothing is made yet.

    Without ``out``: the newest run with ``resume``, else a fresh name under ``runs/``.

    Raises:
        UsageError: ``out`` is in use and ``resume`` is not set, holds a run of another configuration, or no run.
    """
    if out is None and not resume:
        return _fresh(config)
    if out is None and not LATEST.exists():
        raise UsageError(f"there is no {LATEST} to resume: name the folder with --out")
    named = LATEST if out is None else out
    if named.absolute() == LATEST.absolute() and not named.is_symlink():
        raise UsageError(f"{named} is the name of the link to the newest run: choose another --out")
    folder = named.resolve()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: choose another --out")
    if not folder.exists() or all(_is_leftover(path) for path in folder.iterdir()):
        return folder
    if not resume:
        raise UsageError(f"{folder} is not empty: add --resume to go on with the run in it, or choose another --out")
    _refuse_another(folder, config)
    return folder


def resumed_settings(
    out: Path | None,
    path: Path | None = None,
    preset: str | None = None,
    overrides: list[str] | None = None,
    **chosen: Any,
) -> RunConfig:
    """Return the configuration of a run that is to go on in ``out`` (the newest where ``None``).

    It is the one that the run was started with and its data are where it read them, both as far as the arguments, which
    are those of ``load_config``, do not say otherwise. Where no run was started, the arguments are all there is.
    """
    folder = LATEST if out is None else out
    started = (folder / CONFIG).is_file()
    if started and path is None and preset is None:
        path = folder / CONFIG
    config = load_config(path, preset, overrides, **chosen)
    reference = read_data_reference(folder) if started else None
    return config if reference is None or config.data.path is not None else located(config, reference.path)


def located(config: RunConfig, path: Path | None) -> RunConfig:
    """Return ``config`` with its data at ``path``."""
    return config.model_copy(update={"data": config.data.model_copy(update={"path": path})})


def open_folder(folder: Path, config: RunConfig, dataset: Dataset) -> None:
    """Make the run's folder and write its configuration and its data reference; link it as the newest run.

    Raises:
        UsageError: the folder's run was started with other data.
        FedrecallError: the folder cannot be written.
    """
    if (folder / _DATA).exists():
        was = read_data_reference(folder)
        if was is not None and was.sha256 != dataset.sha256:
            raise UsageError(f"{folder} was started with other data: bring that data back, or choose another --out")
    path = config.data.path
    reference = {"path": None if path is None else str(path.absolute()), "sha256": dataset.sha256}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, "*")
        write_atomic(folder / CONFIG, to_toml(config).encode())
        write_json_atomic(folder / _DATA, reference)
        if folder.parent == RUNS.resolve():
            temporary = RUNS / f".latest-{folder.name}"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(folder.name)
            temporary.replace(LATEST)
    except OSError as error:
        raise FedrecallError(f"{folder} cannot be made ({error.strerror}): choose another --out") from error


def read_config(folder: Path) -> RunConfig:
    """Return the configuration of the run in ``folder``; raises UsageError where there is none."""
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} holds no run: name the folder of one, such as {LATEST}")
    return load_config(folder / CONFIG)


def read_data_reference(folder: Path) -> DataReference | None:
    """Return where the data of a run was, ``None`` in a copy without ``private/``; raises CorruptArtefact."""
    path = folder / _DATA
    if not path.exists():
        return None
    try:
        said = json.loads(read_bounded(path, max_bytes=_MAX_BYTES))
        where = None if said["path"] is None else Path(said["path"])
        return DataReference(path=where, sha256=str(said["sha256"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptArtefact(f"{path} cannot be read ({error}): name the data with --data-path") from error


def save_per_user(folder: Path, found: "Mapping[str, Evaluation]") -> None:
    """Keep every user's metrics, for paired comparisons; under ``private/`` alone."""
    arrays: dict[str, Any] = {"users": found["this run"].users}
    for name, evaluation in found.items():
        prefix = "" if name == "this run" else f"{name}/"
        arrays |= {f"{prefix}{metric}": values for metric, values in evaluation.per_user.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(folder / PER_USER, buffer.getvalue())


def _is_leftover(path: Path) -> bool:
    """Whether a killed process left this file in the middle of writing another one."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def check_recorded(folder: Path, config: RunConfig, recorded: Any) -> None:
    """Check that a finished run's configuration is the one that its run.json records.

    Raises:
        UsageError: an earlier version recorded it, which had fewer settings: this version would do something else.
        CorruptArtefact: one of the two was altered.
    """
    if config.published() == recorded:
        return
    mine, theirs = _flat(config.published()), _flat(recorded if isinstance(recorded, dict) else {})
    if theirs and all(mine.get(name, ...) == value for name, value in theirs.items()):
        lacking = ", ".join(sorted(mine.keys() - theirs.keys()))
        raise UsageError(
            f"{folder} was made by an earlier fedrecall, which did not know {lacking}: what it did is not what this "
            "version would do. Use that version for it, or run again"
        )
    raise CorruptArtefact(f"{folder / CONFIG} is not the configuration that run.json records: restore it")


def _fresh(config: RunConfig) -> Path:
    """Return a name under ``runs/`` that no run has."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{config.data.name}"
    name, number = stamp, 1
    while (RUNS / name).exists():
        number += 1
        name = f"{stamp}-{number}"
    return RUNS.resolve() / name


def _refuse_another(folder: Path, config: RunConfig) -> None:
    """Raise UsageError, naming the keys, unless the run in ``folder`` has this configuration."""
    was, now = (_flat(c.published()) for c in (read_config(folder), config))
    other = sorted(key for key in was | now if key != "threads" and was.get(key) != now.get(key))
    if other:
        said = ", ".join(f"{key} was {was.get(key)!r} and is {now.get(key)!r}" for key in other[:5])
        raise UsageError(
            f"{folder} was started with another configuration ({said}): leave settings out to resume with its own, or "
            "choose another --out"
        )


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
