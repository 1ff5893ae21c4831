"""``fedrecall run``: one training with everything around it: evaluation, baselines, index, report, ``run.json``."""

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedrecall.client.training.cohort import Towers
from fedrecall.models.recall import ITEM_ID
from fedrecall.privacy.accounting.accounting import Adversary, epsilon_after
from fedrecall.protocol.files import write_json_atomic
from fedrecall.protocol.item_table import ItemTable
from fedrecall.server.recall.release import ITEMS, ReleaseFiles, load_release, write_release
from fedrecall.simulations.baselines.leak_probe import PublicNegatives, run_leak_probe
from fedrecall.simulations.config import RunConfig
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.splits import Split
from fedrecall.simulations.evaluation.evaluate import evaluate
from fedrecall.simulations.report.compare import read_run
from fedrecall.simulations.report.page import write_report
from fedrecall.simulations.runs.ablation import measure_ablation
from fedrecall.simulations.runs.data import data_of, keep_data
from fedrecall.simulations.runs.folder import PRIVATE, REPORT, RUN_JSON, choose_folder, open_folder, save_per_user
from fedrecall.simulations.runs.index import build_run_index
from fedrecall.simulations.runs.log import LoggedProgress
from fedrecall.simulations.runs.promises import privacy_section
from fedrecall.simulations.runs.recaller import ModelRecaller, item_vectors
from fedrecall.simulations.runs.rivals import NAMES, measure_rivals
from fedrecall.simulations.runs.sections import (
    communication,
    dataset_section,
    evaluation_section,
    long_tail,
    versions,
)
from fedrecall.simulations.runs.wiring import measure, recaller, world_of
from fedrecall.simulations.tracking.callback import Callback
from fedrecall.simulations.training.collect import Engine
from fedrecall.simulations.training.loop import Trained, Validate, train
from fedrecall.simulations.training.world import Progress, World

_INDEX_QUERIES = 200
_WATCHED: tuple[Adversary, ...] = ("released-model", "network", "server")


def run(
    config: RunConfig,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress,
    engine: Engine | None = None,
    dataset: Dataset | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Run ``config`` into the folder ``out`` and return the content of its ``run.json``.

    A finished folder is returned as it is with ``resume``; an unfinished one goes on from its last checkpoint, and
    one that does not exist yet is started. ``engine`` replaces the configured one, and ``dataset`` the data that the
    configuration names; it is kept in the folder's ``private/``, so that everything else finds it there. ``callbacks``
    are told how it goes.

    Raises:
        UsageError: ``out`` holds a run and ``resume`` is not set, or a run of another configuration or other data.
    """
    began = time.perf_counter()
    out = choose_folder(config, out, resume=resume)
    if (out / RUN_JSON).exists():
        return read_run(out)
    if config.threads:
        torch.set_num_threads(config.threads)
    given, dataset = dataset, dataset or data_of(out, config, progress)
    split, world = world_of(config, dataset, progress)
    open_folder(out, config, dataset)
    if given is not None:
        keep_data(out, given)
    progress = LoggedProgress(progress, out / "logs" / "run.log")

    for callback in callbacks:
        callback.begin(config.published())

    def watch(row: Mapping[str, Any]) -> None:
        for callback in callbacks:
            callback.measured(row)

    validate = _validation(world, dataset, split)
    trained = train(world, out, resume=resume, validate=validate, progress=progress, engine=engine, watch=watch)
    release = released_files(out, world, dataset.catalogue.ids, trained)
    # What was released is measured, not what is still in memory.
    model = recaller(world, release.model, release.items, trained.towers, name="this run")
    test = measure(model, dataset, split, "test", config, progress)
    validation = measure(model, dataset, split, "validation", config, progress)
    queries = model.queries(test.users[:_INDEX_QUERIES], split.test_context)
    rivals, settings = measure_rivals(world, dataset, split, progress)

    result: dict[str, Any] = {
        "dataset": dataset_section(dataset, split.protocol),
        "evaluation": evaluation_section(dataset, split, test),
        "privacy": privacy_section(world.plan, trained.start),
        "metrics": test.metrics,
        "validation": validation.metrics,
        "history": trained.history,
        "baselines": {name: rivals[name].metrics if name in rivals else None for name in NAMES},
        "baseline_settings": settings,
        "groups": {name: asdict(group) for name, group in test.groups.items()},
        "long_tail": long_tail(test.top, split, 10),
        "index": build_run_index(out, queries=queries, progress=progress),
        "communication": communication(world, trained, (out / ITEMS).stat().st_size),
    }
    if config.evaluation.ablation:
        parts = measure_ablation(world, dataset, split, out / PRIVATE / "ablation", progress)
        result["ablation"] = {"full run": test.metrics, **parts}
    # The probe ranks what was not drawn: a device's own items first, which it may not where they are left out.
    if config.evaluation.leak_probe and split.protocol != "temporal" and split.repeats == "mask":
        sampler = PublicNegatives(split.train, seed=config.seed, count=config.local.negatives)
        result["leak_probe"] = run_leak_probe(sampler, split, 50, catalogue=dataset.catalogue, progress=progress)
    progress("report", 0, 1)
    result |= {
        "timing": _timing(began, trained),
        "versions": versions(),
        "seed": config.seed,
        "config": config.published(),
    }
    save_per_user(out, {"this run": test, **rivals})
    write_report(result, out / REPORT)
    write_json_atomic(out / RUN_JSON, result)
    progress("report", 1, 1)
    for callback in callbacks:
        callback.end(result)
    return result


def _validation(world: World, dataset: Dataset, split: Split) -> Validate:
    """Return what measures a round on validation: before any device tunes its own tower, which takes far longer."""

    def validate(round: int, arrays: Mapping[str, np.ndarray], towers: Towers | None) -> dict[str, Any]:
        model = ModelRecaller(
            name="validation",
            arrays=arrays,
            vectors=item_vectors(arrays, world.features),
            shape=world.shape,
            personal=world.config.personal.model_copy(update={"steps": 0}),
            towers=towers,
            seed=world.config.seed,
        )
        ks = world.config.evaluation.cutoffs
        found = evaluate(model, split, "validation", catalogue=dataset.catalogue, ks=ks).metrics
        count = sum(m.steps for m in world.plan.mechanisms[:-1]) + round
        quality = {n: v for n, v in found.items() if n.startswith(("recall@", "ndcg@"))}
        return {**quality, "epsilon": {who: epsilon_after(world.plan, count, who, 1e-2) for who in _WATCHED}}

    return validate


def released_files(out: Path, world: World, ids: Sequence[str], trained: Trained) -> ReleaseFiles:
    """Write the release of the items ``ids`` into the folder ``out``, once, and read it back through its manifest."""
    if not (out / "manifest.json").exists():
        write_release(
            out,
            model={name: array for name, array in trained.arrays.items() if name != ITEM_ID},
            items=ItemTable.from_vectors(item_vectors(trained.arrays, world.features), ids),
            round=world.plan.mechanism("rounds").steps,
            plan_digest=world.plan.digest(),
            ledger_head=trained.ledger_head.sha256,
            simulated=world.plan.simulated,
        )
    return load_release(out)


def _timing(began: float, trained: Trained) -> dict[str, float]:
    """Return what this process took; a resumed run counts its last part alone."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "wall_s": round(time.perf_counter() - began, 3),
        "train_s": round(trained.train_s, 3),
        "device_rounds_per_s": round(trained.device_rounds / trained.train_s, 1) if trained.train_s else 0.0,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1),
    }
