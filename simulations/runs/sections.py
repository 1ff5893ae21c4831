"""The sections of ``run.json`` that are functions of what a run already knows."""

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.protocol import VERSION
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.order import order_of, warning_of
from fedrecall.simulations.data.splits import BY_ORDER, Split, Targets, of_known_items, of_new_items, of_new_users
from fedrecall.simulations.data.splits.repeats import share_of_repeats
from fedrecall.simulations.evaluation.evaluate import Evaluation
from fedrecall.simulations.training.loop import Trained
from fedrecall.simulations.training.world import World, trained_names

_CONTEXT = {
    "loo": "training and validation events of the device",
    "temporal": "the device's events before the test time",
    "ncf": "training and validation events of the device",
    "random": "all events of the device but those held out for the test",
    "given": "the device's events in the training and validation files",
}


def dataset_section(dataset: Dataset, protocol: str) -> dict[str, Any]:
    """Return what was read, how it was cleaned, and what orders it, with a warning where that is no order of time."""
    order = order_of(dataset.events, dataset.catalogue.ids)
    return {
        "name": dataset.name,
        "users": dataset.events.n_users,
        "items": len(dataset.catalogue),
        "interactions": dataset.events.n_events,
        "sha256": dataset.sha256,
        "cleaning": dataset.cleaning,
        "order": order,
        "repeats": share_of_repeats(dataset.events),
        "order_warning": warning_of(order, decides=protocol in BY_ORDER),
    }


def evaluation_section(dataset: Dataset, split: Split, test: Evaluation) -> dict[str, Any]:
    """Return what the figures mean."""
    return {
        "protocol": split.protocol,
        "context": _CONTEXT[split.protocol],
        "catalogue": dataset.catalogue.source,
        "masked": "the device's context" if split.repeats == "mask" else "nothing: what it had is recommended again",
        "repeats": split.repeats,
        "held_out": split.held_out,
        "users": len(test.users),
        "notes": split.notes,
        "conventions": "metrics, baselines and validation are computed on private data: simulation only, outside "
        "epsilon",
        **({"new": _new(split, test)} if split.protocol == "temporal" else {}),
        **({"by_novelty": _by_novelty(split, test)} if split.repeats == "recommend" else {}),
    }


def _new(split: Split, test: Evaluation) -> dict[str, dict[str, float]]:
    """Return recall for users without earlier events, and the share of hits among targets that nobody had before."""
    found = Targets(users=test.users, offsets=test.offsets, items=test.targets)
    users, items = of_new_users(split.test_context, found), of_new_items(split.train, found)
    by_user: dict[str, float] = {"count": int(users.sum())}
    by_item: dict[str, float] = {"count": int(items.sum())}
    for name in (n for n in test.per_user if n.startswith("recall@")):
        if users.any():
            by_user[name] = float(test.per_user[name][users].mean())
        if items.any():
            hits = test.ranks[items] < int(name.partition("@")[2])
            by_item[name] = float(hits.mean())
    return {"users": by_user, "items": by_item}


def _by_novelty(split: Split, test: Evaluation) -> dict[str, dict[str, float]]:
    """Return the share of hits among targets that their device had before, and among those that it had not."""
    known = of_known_items(split.test_context, Targets(users=test.users, offsets=test.offsets, items=test.targets))
    found: dict[str, dict[str, float]] = {}
    for key, these in (("again", known), ("new", ~known)):
        found[key] = {"count": int(these.sum())}
        for name in (n for n in test.per_user if n.startswith("recall@") and these.any()):
            found[key][name] = float((test.ranks[these] < int(name.partition("@")[2])).mean())
    return found


def long_tail(top: np.ndarray, split: Split, k: int) -> dict[str, list[float]]:
    """Return, by decile of training popularity, the share of training events and of recommended places."""
    counts = np.bincount(split.train.items, minlength=split.train.n_items)
    order = np.argsort(-counts, kind="stable")
    shown = np.bincount(top[:, :k][top[:, :k] >= 0], minlength=len(counts))
    parts = np.array_split(order, 10)
    return {
        "decile": list(range(1, 11)),
        "train_share": [float(counts[p].sum() / max(1, counts.sum())) for p in parts],
        "exposure_share": [float(shown[p].sum() / max(1, shown.sum())) for p in parts],
    }


def communication(world: World, trained: Trained, table_bytes: int) -> dict[str, Any]:
    """Return the bytes that one device sends and receives, expected over its sampling.

    Arrays of rounds count as float32. The start's statistics count as their codes
    (``fedrecall.client.training.start``), or as float32 where devices add the noise.
    """
    names = trained_names(world)
    counted = world.plan.mechanism("rounds").adaptive_clip is not None  # one number more: was it within the clip?
    update = (sum(trained.arrays[n].size for n in names) + counted) * 4
    model = sum(a.size for a in trained.arrays.values()) * 4
    byte = 1 if world.plan.trust == "central" else 4  # what a device noises itself is no byte any more
    stages = []
    for mechanism in world.plan.mechanisms:
        # Of a limited cohort every device knows how often it takes part at most; else it is an expectation.
        taking_part = mechanism.participations or mechanism.steps * mechanism.sample_rate
        if mechanism.name == "popularity":
            up, down = world.shape.n_items * byte + 4, 0  # a byte an item and one scale
        elif mechanism.name == "second_moments":
            m = trained.start["items"]
            # A byte a pair of items and one scale up; number, weight and direction of each item, and the reach, down.
            up, down = m * (m - 1) // 2 * byte + 4, 24 * m + 8
        else:
            up, down = round(update * taking_part), round(model * taking_part)
        stages.append({"name": mechanism.name, "uplink_bytes": up, "downlink_bytes": down})
    stages.append({"name": "release", "uplink_bytes": 0, "downlink_bytes": table_bytes})
    return {
        "uplink_bytes_per_device_round": update if world.plan.mechanism("rounds").steps else 0,
        "downlink_bytes_per_device_round": model if world.plan.mechanism("rounds").steps else 0,
        "uplink_bytes_per_device_total": sum(s["uplink_bytes"] for s in stages),
        "stages": stages,
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, and the git revision of a source tree."""
    found = {"fedrecall": VERSION, "python": platform.python_version()}
    for name in ("torch", "opacus", "numpy", "scipy", "faiss-cpu", "dp-accounting"):
        found[name] = metadata.version(name)
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and shutil.which("git"):
        asked = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0:
            found["git"] = asked.stdout.strip()
    return found
