"""Several finished runs side by side, and person by person where they were tested on the same people."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from fedrecall.protocol.errors import CorruptArtefact, UsageError
from fedrecall.protocol.files import read_bounded
from fedrecall.protocol.randomness import public_rng
from fedrecall.simulations.evaluation.paired import paired_difference

RUN_JSON = "run.json"
PER_USER = "private/per_user.npz"
_MAX_BYTES = 1 << 30
_SAME = ("protocol", "catalogue", "context", "masked")


def read_run(folder: Path) -> dict[str, Any]:
    """Return ``run.json`` of a run folder.

    Raises UsageError when there is none, CorruptArtefact when it is not a JSON object.
    """
    path = Path(folder) / RUN_JSON
    if not path.is_file():
        raise UsageError(f"{folder} has no {RUN_JSON}: name the folder of a finished run, such as runs/latest")
    try:
        run = json.loads(read_bounded(path, max_bytes=_MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise CorruptArtefact(f"{path} is not JSON ({error}): run again") from error
    if not isinstance(run, dict):
        raise CorruptArtefact(f"{path} holds a {type(run).__name__} and not an object: run again")
    return run


def compare_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Return the runs side by side, and each later run against the first one, person by person.

    Returns:
        ``runs``: one row a run with ``run``, ``dataset``, ``sha256``, ``protocol``, ``seed``, ``unit``,
        ``delta``, ``simulated``, ``metrics`` and ``epsilon`` by adversary (``null`` when unbounded).
        ``differences``: one row a later run with ``run``, ``against``, and either ``metrics`` (by metric what
        ``paired_difference`` returns, this run minus the first) or ``reason`` why they cannot be paired.

        Epsilons are never subtracted: those of different units have no difference.

    Raises:
        UsageError: fewer than two runs, or a folder without a run.
        CorruptArtefact: a file of a run cannot be read.

    """
    if len(folders) < 2:
        raise UsageError(f"{len(folders)} runs to compare: name at least two run folders")
    runs = [read_run(folder) for folder in folders]
    rows = [_row(folder, run) for folder, run in zip(folders, runs, strict=True)]
    first, first_run = folders[0], runs[0]
    differences: list[dict[str, Any]] = []
    for folder, run in zip(folders[1:], runs[1:], strict=True):
        pair: dict[str, Any] = {"run": str(folder), "against": str(first)}
        reason = _why_not(first, first_run, folder, run)
        differences.append(pair | ({"reason": reason} if reason else _paired(Path(folder), Path(first))))
    return {"runs": rows, "differences": differences}


def _row(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    try:
        privacy = run["privacy"]
        return {
            "run": str(folder),
            "dataset": run["dataset"]["name"],
            "sha256": run["dataset"]["sha256"],
            "protocol": run["evaluation"]["protocol"],
            "seed": run["seed"],
            "unit": privacy["unit"],
            "delta": next((a["delta"] for a in privacy["adversaries"]), None),
            "simulated": privacy["simulated"],
            "metrics": run["metrics"],
            "epsilon": {a["name"]: a["epsilon"] for a in privacy["adversaries"]},
        }
    except (KeyError, TypeError) as error:
        raise CorruptArtefact(f"{folder}/{RUN_JSON} lacks {error}: run again") from error


def _why_not(first: Path, a: dict[str, Any], folder: Path, b: dict[str, Any]) -> str:
    """Say why two runs were not tested on the same events of the same people, or return an empty string."""
    if a["dataset"]["sha256"] != b["dataset"]["sha256"]:
        return "different data (sha256)"
    for key in _SAME:
        if a["evaluation"].get(key) != b["evaluation"].get(key):
            return f"different evaluation: {key} is {a['evaluation'].get(key)} and {b['evaluation'].get(key)}"
    if a["evaluation"]["protocol"] in ("ncf", "random") and a["seed"] != b["seed"]:
        return f"different draws: under {a['evaluation']['protocol']} what is looked for depends on the seed"
    for place in (first, folder):
        if not (Path(place) / PER_USER).is_file():
            return f"{place} has no {PER_USER}"
    return ""


def _paired(folder: Path, first: Path) -> dict[str, Any]:
    """Return ``metrics`` by name, or ``reason``; names with a slash are those of baselines."""
    ours, theirs = _load(folder / PER_USER), _load(first / PER_USER)
    if not np.array_equal(ours["users"], theirs["users"]):
        return {"reason": "different people were tested"}
    shared = [name for name in ours if name in theirs and "@" in name and "/" not in name]
    return {
        "metrics": {
            name: paired_difference(ours[name], theirs[name], rng=public_rng(0, "compare", name)) for name in shared
        }
    }


def _load(path: Path) -> dict[str, Shaped[np.ndarray, " evaluated"]]:
    """Return the columns of one run's people; each has one row a person."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            columns = {name: np.asarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptArtefact(f"{path} cannot be read ({error}): run again") from error
    people = columns.get("users")
    if people is None or any(column.shape != people.shape for column in columns.values()):
        raise CorruptArtefact(f"{path} does not have one row a person in every column: run again")
    return columns
