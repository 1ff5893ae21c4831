"""``fedrecall run``: one training with everything around it: evaluation, baselines, index, report, ``run.json``."""

import platform
import resource
import subprocess
import time
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fedrecall
from fedrecall.models.recall import ITEM_ID
from fedrecall.privacy.accounting import account, account_adversary, first_releases
from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.files import write_atomic, write_json_atomic
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.plan import Plan
from fedrecall.server.index import build_index, save_index, stated_recall
from fedrecall.server.release import write_release
from fedrecall.simulations.baselines.local_only import LocalOnly
from fedrecall.simulations.baselines.tuning import fit_tuned_baselines
from fedrecall.simulations.central import train_centrally
from fedrecall.simulations.config import RunConfig, to_toml
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.data.splits import Split, make_split
from fedrecall.simulations.evaluation.evaluate import Evaluation, evaluate
from fedrecall.simulations.evaluation.leak_probe import PublicNegatives, run_leak_probe
from fedrecall.simulations.plan import plan_for
from fedrecall.simulations.recaller import ModelRecaller, item_vectors
from fedrecall.simulations.report import write_report
from fedrecall.simulations.training import Progress, Trained, World, shape_of, train, trained_names

RUNS = Path("runs")
_QUERIES_FOR_INDEX = 1000


def run(config: RunConfig, *, out: Path | None = None, resume: bool = False, progress: Progress) -> dict[str, Any]:
    """Run ``config`` into the folder ``out`` and return the content of its ``run.json``.

    A finished folder is returned as it is with ``resume``; an unfinished one goes on from its last checkpoint.

    Raises:
        UsageError: ``out`` holds a run and ``resume`` is not set, or a run of another configuration.
    """
    began = time.perf_counter()
    if config.threads:
        torch.set_num_threads(config.threads)
    out = _folder(config, out, resume=resume)
    dataset, split, world = prepare(config, progress)
    write_atomic(out / "config.toml", to_toml(config).encode())
    _link_latest(out)

    trained = _train(world, dataset, split, out, resume=resume, progress=progress)
    table = ItemTable.from_vectors(item_vectors(trained.arrays, world.features), dataset.catalogue.ids)
    table_bytes = _release(out, world.plan, table, trained)
    model = recaller(world, trained, table, name="this run")
    test, validation = (_evaluated(model, dataset, split, part, config, progress) for part in ("test", "validation"))
    queries = model.queries(test.users[:_QUERIES_FOR_INDEX], split.test_context)
    index = build_index(table)
    index_sha = save_index(index, out / "items.faiss")

    baselines, settings, others = _baselines(world, dataset, split, config, progress)
    result: dict[str, Any] = {
        "dataset": {
            "name": dataset.name,
            "users": dataset.events.n_users,
            "items": len(dataset.catalogue),
            "interactions": dataset.events.n_events,
            "sha256": dataset.sha256,
            "cleaning": dataset.cleaning,
        },
        "evaluation": {
            "protocol": split.protocol,
            "context": "training and validation events of the device",
            "catalogue": dataset.catalogue.source,
            "masked": "the device's context",
            "users": len(test.users),
            "notes": split.notes,
            "conventions": "metrics, baselines and validation are computed on private data: simulation only, outside epsilon",
        },
        "privacy": privacy_section(world.plan, trained.start),
        "metrics": test.metrics,
        "validation": validation.metrics,
        "history": trained.history,
        "baselines": baselines,
        "baseline_settings": settings,
        "groups": {name: asdict(group) for name, group in test.groups.items()},
        "long_tail": long_tail(test.top, split, 10),
        "index": {"kind": index.kind, "sha256": index_sha, **stated_recall(index, table, queries)},
        "communication": communication(world, trained, table_bytes),
    }
    if config.evaluation.ablation:
        result["ablation"] = _ablation(world, dataset, split, out, test.metrics, progress)
    if config.evaluation.leak_probe and split.protocol != "temporal":
        sampler = PublicNegatives(split.train, seed=config.seed, count=config.local.negatives)
        result["leak_probe"] = run_leak_probe(sampler, split, 50, catalogue=dataset.catalogue, progress=progress)
    result |= {
        "timing": {
            "wall_s": round(time.perf_counter() - began, 3),
            "train_s": round(trained.train_s, 3),
            "device_rounds_per_s": round(trained.device_rounds / trained.train_s, 1) if trained.train_s else 0.0,
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        },
        "versions": versions(),
        "seed": config.seed,
        "config": config.model_dump(mode="json", exclude={"data": {"path"}}),
    }
    private = {
        "data": str(config.data.path) if config.data.path else dataset.name,
        "users": dataset.events.n_users,
    }
    write_json_atomic(out / "private" / "data.json", private)
    _save_per_user(out / "private" / "per_user.npz", {"this run": test, **others})
    progress("report", 0, 1)
    write_report(result, out / "report.html")
    write_json_atomic(out / "run.json", result)
    progress("report", 1, 1)
    return result


def prepare(config: RunConfig, progress: Progress) -> tuple[Dataset, Split, World]:
    """Load the data, split it, and fix plan and shape."""
    dataset = load_dataset(
        config.data.name,
        data_path=config.data.path,
        catalogue=config.data.catalogue,
        k_core=config.data.k_core,
        seed=config.seed,
        progress=progress,
    )
    split = make_split(dataset, config.data.protocol, config.seed)
    features = dataset.catalogue.category_matrix() if config.model.features else None
    if features is not None and not features.shape[1]:
        features = None
    n_features = 0 if features is None else features.shape[1]
    plan = plan_for(config, dataset.events.n_users)
    shape = shape_of(config, len(dataset.catalogue), n_features, len(split.train.type_names))
    return dataset, split, World(config=config, plan=plan, store=split.train, features=features, shape=shape)


def recaller(world: World, trained: Trained, table: ItemTable, *, name: str, tower: bool = True) -> ModelRecaller:
    """Return the released model as devices use it, with or without their user towers."""
    personal = world.config.personal
    return ModelRecaller(
        name=name,
        arrays=trained.arrays,
        vectors=table.vectors(),
        shape=world.shape,
        personal=personal if tower else personal.model_copy(update={"steps": 0}),
        towers=trained.towers if tower else None,
        seed=world.config.seed,
    )


def _train(world: World, dataset: Dataset, split: Split, out: Path, *, resume: bool, progress: Progress) -> Trained:
    """Train, validating without the leisurely parts: exact float vectors, no tower tuning."""

    def validate(round: int, arrays: dict[str, np.ndarray], towers: Any) -> dict[str, Any]:
        model = ModelRecaller(
            name="validation",
            arrays=arrays,
            vectors=item_vectors(arrays, world.features),
            shape=world.shape,
            personal=world.config.personal.model_copy(update={"steps": 0}),
            towers=None,
            seed=world.config.seed,
        )
        found = evaluate(
            model, split, "validation", catalogue=dataset.catalogue, ks=world.config.evaluation.cutoffs
        ).metrics
        wanted = {n: v for n, v in found.items() if n.startswith(("recall@", "ndcg@"))}
        spent = first_releases(world.plan, sum(m.steps for m in world.plan.mechanisms[:-1]) + round)
        rows = (account_adversary(spent, name, 1e-2) for name in ("released-model", "network", "server"))
        return {**wanted, "epsilon": {row.name: row.epsilon for row in rows}}

    return train(world, out, resume=resume, validate=validate, progress=progress)  # type: ignore[arg-type]


def privacy_section(plan: Plan, start: dict[str, Any]) -> dict[str, Any]:
    """Return the ``privacy`` part of run.json: what was released, and against whom it is bounded."""
    rows = [asdict(row) for row in account(plan)]
    return {
        "unit": plan.unit,
        "trust": plan.trust,
        "simulated": plan.simulated,
        "delta": plan.delta,
        "plan_sha256": plan.digest(),
        "mechanisms": [asdict(m) for m in plan.mechanisms],
        "adversaries": rows,
        "start": start,
    }


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
    """Return the bytes that one device sends and receives, expected over its sampling; arrays as float32."""
    names = trained_names(world)
    update = sum(trained.arrays[n].size for n in names) * 4
    model = sum(a.size for a in trained.arrays.values()) * 4
    stages = []
    for mechanism in world.plan.mechanisms:
        taking_part = mechanism.steps * mechanism.sample_rate
        if mechanism.name == "popularity":
            up, down = 4 * world.shape.n_items, 0
        elif mechanism.name == "second_moments":
            m = trained.start["items"]
            up, down = 4 * m * (m + 1) // 2, 4 * world.shape.n_items
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
    found = {"fedrecall": fedrecall.__version__, "python": platform.python_version()}
    for name in ("torch", "opacus", "numpy", "scipy", "faiss-cpu", "dp-accounting"):
        found[name] = metadata.version(name)
    root = Path(__file__).resolve().parent.parent
    if (root / ".git").exists():
        asked = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
        if asked.returncode == 0:
            found["git"] = asked.stdout.strip()
    return found


def _evaluated(
    model: Any, dataset: Dataset, split: Split, part: Any, config: RunConfig, progress: Progress
) -> Evaluation:
    return evaluate(
        model,
        split,
        part,
        catalogue=dataset.catalogue,
        ks=config.evaluation.cutoffs,
        groups=dataset.groups,
        progress=progress,
    )


def _baselines(
    world: World, dataset: Dataset, split: Split, config: RunConfig, progress: Progress
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Evaluation]]:
    """Return test metrics, chosen settings and evaluations of what the model is compared with."""
    found: dict[str, Evaluation] = {}
    settings: dict[str, Any] = {}
    if config.evaluation.baselines:
        for name, tuned in fit_tuned_baselines(split, dataset.catalogue, progress).items():
            found[name] = _evaluated(tuned.recaller, dataset, split, "test", config, progress)
            settings[name] = tuned.settings
        alone = LocalOnly.fit(dataset.catalogue)
        found["local_only"] = _evaluated(alone, dataset, split, "test", config, progress)
    if config.evaluation.central:
        found["central"] = central_evaluation(world, dataset, split, progress)
        settings["central"] = config.central.model_dump()
    names = ("most_popular", "item_knn", "ease", "ease_weighted", "central", "local_only")
    return {n: found[n].metrics if n in found else None for n in names}, settings, found


def central_evaluation(world: World, dataset: Dataset, split: Split, progress: Progress) -> Evaluation:
    """Train the same model centrally from a noiseless start, and evaluate it on test as the federated one."""
    config = world.config
    arrays = train_centrally(world, progress)
    table = ItemTable.from_vectors(item_vectors(arrays, world.features), dataset.catalogue.ids)
    model = ModelRecaller(
        name="central",
        arrays=arrays,
        vectors=table.vectors(),
        shape=world.shape,
        personal=config.personal,
        towers=None,
        seed=config.seed,
    )
    return _evaluated(model, dataset, split, "test", config, progress)


def _ablation(
    world: World, dataset: Dataset, split: Split, out: Path, full: dict[str, float], progress: Progress
) -> dict[str, dict[str, float]]:
    """Measure the run without its start, its rounds and its user tower, each in turn, at the same epsilon."""
    config = world.config
    without = {
        "without the start": config.model_copy(update={"start": config.start.model_copy(update={"enabled": False})}),
        "without the rounds": config.model_copy(update={"rounds": config.rounds.model_copy(update={"count": 0})}),
        "without the user tower": config.model_copy(
            update={
                "personal": config.personal.model_copy(update={"steps": 0}),
                "local": config.local.model_copy(update={"tower_learning_rate": 0.0}),
            }
        ),
    }
    rows = {"full run": full}
    for name, changed in without.items():
        other = replace(world, config=changed, plan=plan_for(changed, dataset.events.n_users))
        folder = out / "private" / "ablation" / name.replace(" ", "-")
        trained = train(other, folder, resume=True, validate=None, progress=progress)
        table = ItemTable.from_vectors(item_vectors(trained.arrays, world.features), dataset.catalogue.ids)
        rows[name] = _evaluated(
            recaller(other, trained, table, name=name), dataset, split, "test", config, progress
        ).metrics
    return rows


def _release(out: Path, plan: Plan, table: ItemTable, trained: Trained) -> int:
    """Write the release into the run folder, once; return the size of the item table's file."""
    model = {name: array for name, array in trained.arrays.items() if name != ITEM_ID}
    if not (out / "manifest.json").exists():
        write_release(
            out,
            model=model,
            items=table,
            round=plan.mechanism("rounds").steps,
            plan_digest=plan.digest(),
            ledger_head=trained.ledger_head.sha256,
            simulated=plan.simulated,
        )
    return (out / "items.safetensors").stat().st_size


def _folder(config: RunConfig, out: Path | None, *, resume: bool) -> Path:
    """Return the run's folder, made if need be; refuse one that holds another run."""
    if out is None:
        if resume:
            out = RUNS / "latest"
            if not out.exists():
                raise UsageError("there is no runs/latest to resume: name the folder with --out")
            return out.resolve()
        stamp = time.strftime("%Y%m%d-%H%M%S")
        name, number = f"{stamp}-{config.data.name}", 1
        while (RUNS / name).exists():
            number += 1
            name = f"{stamp}-{config.data.name}-{number}"
        out = RUNS / name
    elif not resume and out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is not empty: add --resume to go on with the run in it, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _link_latest(out: Path) -> None:
    """Point runs/latest at a run under runs/."""
    if out.parent.resolve() != RUNS.resolve():
        return
    link = RUNS / "latest"
    temporary = RUNS / f".latest-{out.name}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(out.name)
    temporary.replace(link)


def _save_per_user(path: Path, found: dict[str, Evaluation]) -> None:
    """Keep every user's metrics, for paired comparisons. Private: written under ``private/`` alone."""
    import io

    arrays = {"users": found["this run"].users}
    for name, evaluation in found.items():
        prefix = "" if name == "this run" else f"{name}/"
        arrays |= {f"{prefix}{metric}": values for metric, values in evaluation.per_user.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())
