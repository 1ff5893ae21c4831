"""Every attack on federated recommendation, without privacy against epsilon 8 and 2: tables and a picture.

    python benchmarks/attacks.py OUT --data-path FOLDER [--datasets ml-100k ml-1m] [--kinds updates ...] [--jobs 2]

FOLDER holds a folder for each data set. Every attack is made whole, whatever it takes: nothing here is cut by a clock.
Rounds are few: attacks on updates need no more; the open run is cut to 200 rounds. Each kind of attack on each run is
kept in OUT as JSON once it is made, so that an interrupted benchmark goes on where it stopped; settings that differ
make it again. OUT/attacks.md has the tables, OUT/attacks.svg the picture.

A cell is the AUC with its 95 % interval and the hits at 1 % and at 0.1 % false alarms, where there are enough negatives
to say; the empirical epsilon, where it is above 0; for promotion, the share of devices that see the item before and
after, and recall@10; for sizes, how many there are beyond the first.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fedrecall.protocol.files import write_atomic, write_json_atomic
from fedrecall.simulations.audit.attacks import SHARES, attack_steps
from fedrecall.simulations.audit.attempt import Attempt
from fedrecall.simulations.config import RunConfig, load_config
from fedrecall.simulations.report.pictures import Interval, interval_chart, standalone
from fedrecall.simulations.report.words import duration
from fedrecall.simulations.training import train
from fedrecall.simulations.wiring import prepare

RUNS = {
    "open": ("open", ["rounds.count=200", "server.warmup_rounds=20"]),
    "epsilon 8": ("user-eps8", []),
    "epsilon 2": ("user-eps2", []),
}
TRAINS_ITSELF = ("training", "models", "models by defence")
"""Kinds that train their own models, longest first; the others attack one released model, and share it."""
ENDLESS_S = 1e9

Found = dict[str, dict[str, Attempt]]
"""Attempts by run and name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", default=["ml-100k", "ml-1m"])
    parser.add_argument("--kinds", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--models", type=int, default=16, help="shadow models of each membership attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    parts = [[kind] for kind in TRAINS_ITSELF if kind in given.kinds]
    parts.append([kind for kind in given.kinds if kind not in TRAINS_ITSELF])
    sized = sorted(given.datasets, key=lambda d: -sum(f.stat().st_size for f in (given.data_path / d).glob("*")))
    tasks = [(dataset, label, kinds) for dataset in sized for kinds in parts for label in RUNS if kinds]
    began, failed = time.monotonic(), 0
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        running: dict[Future[None], str] = {
            pool.submit(make, given.out, *task, given.data_path, given.models, given.seed): f"{task[0]}, {task[1]}: "
            + ", ".join(task[2])
            for task in tasks
        }
        for done, future in enumerate(as_completed(running), 1):
            error = future.exception()
            failed += error is not None
            what = f"{running[future]}{f' FAILED: {error!r}' if error else ''}"
            print(f"{done} of {len(tasks)} after {duration(round(time.monotonic() - began))}: {what}", file=sys.stderr)
    found = {dataset: kept(given.out, dataset, given.kinds) for dataset in given.datasets}
    text = "\n".join(table(dataset, runs) for dataset, runs in found.items())
    write_atomic(given.out / "attacks.md", text.encode())
    write_atomic(given.out / "attacks.svg", picture(found).encode())
    print(text)
    sys.exit(1 if failed else 0)


def make(out: Path, dataset: str, label: str, kinds: list[str], folder: Path, models: int, seed: int) -> None:
    """Make ``kinds`` of attacks on one run, each kept as soon as it is done, and passed over where it is."""
    preset, overrides = RUNS[label]
    config = load_config(
        None, preset, ["threads=1", *overrides], dataset=dataset, data_path=folder / dataset, seed=seed
    )
    settings = said(config, models)
    left = [kind for kind in kinds if load(out, dataset, label, kind).get("settings") != settings]
    if not left:
        return
    world = prepare(config, silent)[2]
    arrays = {}
    if not set(left) <= set(TRAINS_ITSELF):
        with tempfile.TemporaryDirectory() as scratch:
            arrays = train(world, Path(scratch), resume=False, validate=None, progress=silent).arrays
    steps = attack_steps(world, arrays, seed, ENDLESS_S, silent, models=models)
    for kind in left:
        began = time.monotonic()
        attempts = [attempt.to_dict() for attempt in steps[kind]()]
        result = {"settings": settings, "seconds": round(time.monotonic() - began, 1), "attempts": attempts}
        out.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path_of(out, dataset, label, kind), result)


def said(config: RunConfig, models: int) -> dict[str, Any]:
    """Return what the result depends on, without the place where the data lie."""
    dumped = config.model_dump(mode="json", exclude={"data": {"path"}})
    return {"config": dumped, "models": models}


def path_of(out: Path, dataset: str, label: str, kind: str) -> Path:
    return out / f"{dataset} {label} {kind}.json".replace(" ", "-")


def load(out: Path, dataset: str, label: str, kind: str) -> dict[str, Any]:
    path = path_of(out, dataset, label, kind)
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def kept(out: Path, dataset: str, kinds: Sequence[str]) -> Found:
    return {
        label: {
            row["name"]: Attempt(**row) for kind in kinds for row in load(out, dataset, label, kind).get("attempts", [])
        }
        for label in RUNS
    }


def silent(what: str, done: int, total: int) -> None:
    pass


def table(dataset: str, found: Mapping[str, Mapping[str, Attempt]]) -> str:
    names = list(dict.fromkeys(name for rows in found.values() for name in rows))
    first = {name: next(rows[name] for rows in found.values() if name in rows) for name in names}
    lines = [f"| adversary | {dataset}: attack | {' | '.join(found)} |", "|---" * (2 + len(found)) + "|"]
    for name in sorted(names, key=lambda n: (first[n].adversary, names.index(n))):
        cells = [cell(rows.get(name)) for rows in found.values()]
        lines.append(f"| {first[name].adversary} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(row: Attempt | None) -> str:
    if row is None:
        return "-"
    if row.score is None:
        return "not tested"
    if row.low is None or row.high is None:
        return f"{row.score:g}"
    if row.metric == "hits":
        share = [f"{row.detail[f'exposure@{k} {when}']:.1%}" for k in (10, 50) for when in ("before", "after")]
        recall = f"{row.detail['recall@10 before']:.3f} to {row.detail['recall@10 after']:.3f}"
        return f"@10 {share[0]} to {share[1]}, @50 {share[2]} to {share[3]}; recall {recall}"
    words = f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]"
    hits = [f"{row.detail[f'tpr@{at}']:.1%} at {at}" for at in ("1%", "0.1%") if row.detail[f"tpr@{at}"] is not None]
    return "; ".join([words, *hits]) + (f"; epsilon >= {row.empirical_epsilon:.2f}" if row.empirical_epsilon else "")


def picture(found: Mapping[str, Found]) -> str:
    """Draw every AUC with its interval: a panel a data set, a row an attack, a colour a run."""
    panels = {
        dataset: {
            name: {
                label: Interval(value=row.score, low=row.low, high=row.high)
                for label, rows in runs.items()
                if (row := rows.get(name)) and row.score is not None and row.low is not None and row.high is not None
            }
            for name in sorted({n for rows in runs.values() for n, r in rows.items() if r.metric == "auc"})
        }
        for dataset, runs in found.items()
    }
    alt = "How well each attack tells what it wants to know, with and without each defence; 0.5 is chance"
    chart = interval_chart(panels, key="attacks", alt=alt, x_label="AUC (0.5 is chance)", chance=0.5)
    return standalone(chart, "Attacks on federated recommendation")


if __name__ == "__main__":
    main()
