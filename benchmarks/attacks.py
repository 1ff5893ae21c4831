"""Every attack on federated recommendation, without privacy against epsilon 8 and 2: tables and a picture.

    python benchmarks/attacks.py OUT --data-path FOLDER [--datasets ml-100k ml-1m] [--kinds updates ...] [--jobs 2]

FOLDER holds a folder for each data set. Every attack is made whole, whatever it takes: nothing here is cut by a clock.
Rounds are few: attacks on updates need no more; the open run is cut to 200 rounds. Each kind of attack on each run is
kept in OUT as JSON once it is made, so that an interrupted benchmark goes on where it stopped; settings that differ
make it again. OUT/attacks.md is the page docs/attacks.md, OUT/attacks.svg its picture.
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
from fedrecall.simulations.audit.attacks.observed import TABLE
from fedrecall.simulations.audit.attacks.steps import SHARES, attack_steps
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.config import RunConfig, load_config
from fedrecall.simulations.report.pictures import Interval, interval_chart, standalone
from fedrecall.simulations.report.words import duration
from fedrecall.simulations.runs.wiring import prepare
from fedrecall.simulations.training.loop import train

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
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--kinds", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--models", type=int, default=16, help="shadow models of each membership attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    given = parser.parse_args()
    parts = [[kind] for kind in TRAINS_ITSELF if kind in given.kinds]
    parts.append([kind for kind in given.kinds if kind not in TRAINS_ITSELF])
    sized = sorted(given.datasets, key=lambda d: -sum(f.stat().st_size for f in (given.data_path / d).glob("*")))
    tasks = [(dataset, label, kinds) for dataset in sized for kinds in parts for label in given.runs if kinds]
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
    found = {dataset: kept(given.out, dataset, given.runs, given.kinds) for dataset in given.datasets}
    spent = sum(
        load(given.out, d, run, kind).get("seconds", 0.0) for d in found for run in RUNS for kind in given.kinds
    )
    text = page(found, spent, given.models, given.seed)
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


def kept(out: Path, dataset: str, runs: Sequence[str], kinds: Sequence[str]) -> Found:
    return {
        label: {
            row["name"]: Attempt(**row) for kind in kinds for row in load(out, dataset, label, kind).get("attempts", [])
        }
        for label in runs
    }


def silent(what: str, done: int, total: int) -> None:
    pass


PAGE = """# What attacks find

![{alt}](images/attacks.svg)

Made by `python benchmarks/attacks.py OUT --data-path FOLDER` with seed {seed} and {models} shadow models, {spent} in
all, were it done one by one. `open` is the preset without privacy, cut to 200 rounds of 64 devices; `epsilon 8` and
`epsilon 2` are `user-eps8` and `user-eps2`. What it means is in [audits](audit.md#what-attacks-find).

`Item table trained` is the same run as if it trained the table too, as most federated recommenders do: `open` does.
Rows say which defence holds: `raw update`, `none`: none; `norm bound`: the clip alone; `sum`, `median` and `trimmed
mean` of so many updates, without noise; `plan`: clip and noise, in the sum over the cohort; `noise on each device`: a
plan of unit `interaction` and the same epsilon. `If one left` is about what never leaves a device.

## By adversary

AUC (0.5 is chance), then the hits at 1 % false alarms.

{short}
## With intervals

AUC with its 95 % interval; hits at 1 % and at 0.1 % false alarms, where there are enough negatives to say; the
empirical epsilon, where it is above 0. Of sizes, counted are those beyond the first.

{tables}
## Promotion

Five rounds; one device in a hundred is malicious, and wants an item that nobody sees to be shown to everybody. `random`
and `popular` are made-up histories, of random or of popular items, in which the item follows every other event, sent
through honest code; `scaled` makes up the same in the start and then sends updates as long as it takes to be the mean.
A cell is the share of lists of 10 and of 50 that show it before and after, and what becomes of everybody's recall@10.

{promotions}"""
ALT = "How well each attack tells what it wants to know, with and without each defence; 0.5 is chance"


def page(found: Mapping[str, Found], spent: float, models: int, seed: int) -> str:
    return PAGE.format(
        alt=ALT,
        seed=seed,
        models=models,
        spent=duration(round(spent)),
        short=short(found),
        tables="\n".join(table(dataset, runs, promotion=False) for dataset, runs in found.items()),
        promotions="\n".join(table(dataset, runs, promotion=True) for dataset, runs in found.items()),
    )


def short(found: Mapping[str, Found]) -> str:
    columns = {f"{dataset}, {label}": rows for dataset, runs in found.items() for label, rows in runs.items()}
    lines = [f"| adversary | attack | {' | '.join(columns)} |", "|---" * (2 + len(columns)) + "|"]
    for name, adversary in named(columns, promotion=False).items():
        cells = [brief(rows.get(name)) for rows in columns.values()]
        lines.append(f"| {adversary} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def named(columns: Mapping[str, Mapping[str, Attempt]], *, promotion: bool) -> dict[str, str]:
    """Return the adversary of each attack's name, by adversary."""
    rows = {row.name: row for rows in columns.values() for row in rows.values()}
    wanted = [name for name in rows if name.startswith("promotion") == promotion]

    def order(name: str) -> tuple[str, str, bool]:
        return rows[name].adversary, name.split(":")[0], TABLE in name

    return {name: rows[name].adversary for name in sorted(wanted, key=order)}


def brief(row: Attempt | None) -> str:
    if row is None:
        return "-"
    if row.score is None:
        return "not tested"
    hits = row.detail.get("tpr@1%")
    return (f"{row.score:.3f}" if row.metric == "auc" else f"{row.score:g}") + (f", {hits:.1%}" if hits else "")


def table(dataset: str, found: Found, *, promotion: bool) -> str:
    lines = [f"| adversary | {dataset}: attack | {' | '.join(found)} |", "|---" * (2 + len(found)) + "|"]
    for name, adversary in named(found, promotion=promotion).items():
        cells = [cell(rows.get(name)) for rows in found.values()]
        lines.append(f"| {adversary} | {name} | {' | '.join(cells)} |")
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
            for name in sorted({n for rows in runs.values() for n, r in rows.items() if r.metric == "auc" and r.trials})
        }
        for dataset, runs in found.items()
    }
    chart = interval_chart(panels, key="attacks", alt=ALT, x_label="AUC (0.5 is chance)", chance=0.5)
    return standalone(chart, "Attacks on federated recommendation")


if __name__ == "__main__":
    main()
