"""Runs small enough for tests: a tiny model on the synthetic data, without rivals."""

import os
import subprocess
import sys
from pathlib import Path

from fedrecall.simulations.config import RunConfig, load_config
from fedrecall.simulations.data.importing.import_spec import ImportSpec
from fedrecall.simulations.data.importing.importer import import_files
from fedrecall.simulations.runs.run import run

from ...house import ROOT

SMALL = (
    "threads=1",
    "model.dim=8",
    "model.window=12",
    "model.blocks=1",
    "model.hidden=16",
    "local.negatives=32",
    "personal.steps=1",
    "personal.negatives=32",
    "rounds.count=4",
    "rounds.train=['item.', 'transformer.']",
    "rounds.evaluate_every=2",
    "server.checkpoint_every=1",
    "central.steps=2",
    "evaluation.baselines=false",
    "evaluation.central=false",
    "evaluation.ablation=false",
    "evaluation.leak_probe=false",
)


def small_config(*overrides: str, preset: str = "user-eps8", **options) -> RunConfig:
    options.setdefault("dataset", "synthetic")
    return load_config(None, preset, [*SMALL, *overrides], **options)


def small_run(out: Path, *overrides: str, resume: bool = False, **options) -> dict:
    return run(small_config(*overrides, **options), out=out, resume=resume, progress=lambda *_: None)


def flags(*overrides: str) -> list[str]:
    """Spell settings for the command line."""
    return [part for setting in (*SMALL, *overrides) for part in ("-c", setting)]


def start_cli(*arguments: str, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fedrecall.cli", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, text=True, stdout=pipe, stderr=pipe, env=environment, **options)


def leftovers(folder: Path) -> list[Path]:
    """Return what a writer that did not finish would leave."""
    return [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def import_small(dataset, folder: Path, name: str = "small") -> None:
    """Import a generated data set under a name that a run takes; the cache must be the test's own."""
    events = dataset.events
    rows = zip(events.users().tolist(), events.items.tolist(), events.times.tolist(), strict=True)
    lines = ["user,item,time", *(f"u{user},i{item},{time}" for user, item, time in rows)]
    (folder / "small.csv").write_text("\n".join(lines) + "\n")
    import_files(ImportSpec(files=(folder / "small.csv",), name=name, user="user", item="item", time="time"))
