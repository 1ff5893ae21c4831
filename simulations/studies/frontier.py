"""The frontier: quality against epsilon, for both units, as a table and one picture. ``make frontier``.

    python -m fedrecall.simulations.studies.frontier --dataset ml-1m --data-path FOLDER --out runs/frontier

Every cell is a run in a folder of its own: a killed frontier goes on when it is started again, and a cell can be
opened, audited and repeated like any other run. Its epsilon is worked out again from the ledger that it left.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from fedrecall.privacy.ledger.ledger_report import ledger_report
from fedrecall.protocol.errors import CorruptArtefact, FedrecallError, UsageError
from fedrecall.protocol.files import write_atomic, write_json_atomic
from fedrecall.simulations.config import load_config
from fedrecall.simulations.report.compare import read_run
from fedrecall.simulations.report.pictures import frontier_chart, standalone
from fedrecall.simulations.runs.run import run
from fedrecall.simulations.training.world import Progress

METRICS = ("recall@10", "recall@50", "ndcg@10")
EPSILONS = {"user": (0.5, 1.0, 2.0, 4.0, 8.0), "interaction": (2.0, 8.0)}
RIVALS = {"ease_weighted": "EASE, recent", "ease": "EASE", "most_popular": "most popular", "local_only": "device alone"}
_ALONE = ("evaluation.baselines=false", "evaluation.central=false", "evaluation.ablation=false")
_SAME = 1e-3


def preset_for(unit: str, epsilon: float) -> str:
    """Return the preset whose settings serve an epsilon: the nearest that was tuned, by ratio."""
    tuned = (8, 2, 1) if unit == "user" else (8, 2)
    return f"{unit}-eps{min(tuned, key=lambda e: abs(math.log(epsilon / e)))}"


def cells(seeds: list[int], *, train_open: bool) -> dict[str, tuple[str, list[str], int]]:
    """Return preset, overrides and seed of every run by its folder's name; the first also measures the rivals."""
    found = {}
    for seed in seeds:
        for unit, epsilons in EPSILONS.items():
            for epsilon in epsilons:
                name = f"{unit}-{epsilon:g}-seed{seed}"
                found[name] = (preset_for(unit, epsilon), [f"privacy.epsilon={epsilon}", *_ALONE], seed)
        if train_open:
            found[f"open-seed{seed}"] = ("open", list(_ALONE), seed)
    first = f"user-8-seed{seeds[0]}"
    preset, overrides, seed = found[first]
    found[first] = (preset, [o for o in overrides if o != _ALONE[0]], seed)
    return found


def frontier(
    dataset: str,
    data_path: Path | None,
    out: Path,
    seeds: list[int],
    *,
    opened: list[Path] | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """Run every cell that is missing in ``out``; write ``frontier.json``, ``frontier.md`` and ``frontier.svg``.

    ``opened`` are finished runs without privacy on the same data, to be drawn as a line; ``None`` trains one a seed.

    Raises:
        CorruptArtefact: a cell's ledger gives another epsilon than its report claims.
        UsageError: a run of ``opened`` has a bound, or is of other data.
    """
    work = cells(seeds, train_open=opened is None)
    runs: dict[str, dict[str, Any]] = {}
    for i, (name, (preset, overrides, seed)) in enumerate(work.items()):
        progress("cells", i, len(work))
        config = load_config(None, preset, overrides, dataset=dataset, data_path=data_path, seed=seed)
        runs[name] = run(config, out=out / name, resume=(out / name).exists(), progress=progress)
        _check(out / name, runs[name])
    progress("cells", len(work), len(work))
    points = {
        unit: [
            _point(unit, epsilon, [runs[f"{unit}-{epsilon:g}-seed{seed}"] for seed in seeds]) for epsilon in epsilons
        ]
        for unit, epsilons in EPSILONS.items()
    }
    rivals = runs[f"user-8-seed{seeds[0]}"]["baselines"]
    lines = {words: {m: rivals[name][m] for m in METRICS} for name, words in RIVALS.items() if rivals.get(name)}
    without = [runs[f"open-seed{s}"] for s in seeds] if opened is None else [read_run(folder) for folder in opened]
    data = {one["dataset"]["sha256"] for one in runs.values()}
    if any(r["config"]["privacy"]["epsilon"] is not None or r["dataset"]["sha256"] not in data for r in without):
        raise UsageError("a run of --open is of other data, or private: name runs of preset open on the same data")
    if without:
        lines = {"open, federated": _point("open", None, without)["mean"], **lines}
    result = {"dataset": dataset, "protocol": "loo", "seeds": seeds, "delta": 1e-5, "points": points, "lines": lines}
    write_json_atomic(out / "frontier.json", result)
    write_atomic(out / "frontier.md", table(result).encode())
    write_atomic(out / "frontier.svg", picture(result).encode())
    return result


def _check(folder: Path, found: dict[str, Any]) -> None:
    """Account the ledger again, independently of what the run wrote."""
    spent = {row["name"]: row["epsilon"] for row in ledger_report(folder)["adversaries"]}
    for row in found["privacy"]["adversaries"]:
        claimed, again = row["epsilon"], spent[row["name"]]
        if (claimed is None) != (again is None) or (claimed is not None and abs(claimed - again) > _SAME):
            raise CorruptArtefact(f"{folder}: {row['name']} is claimed {claimed}, its ledger gives {again}")


def _point(unit: str, epsilon: float | None, found: list[dict[str, Any]]) -> dict[str, Any]:
    values = {m: [one["metrics"][m] for one in found] for m in METRICS}
    return {
        "unit": unit,
        "epsilon": epsilon,
        "mean": {m: sum(v) / len(v) for m, v in values.items()},
        "low": {m: min(v) for m, v in values.items()},
        "high": {m: max(v) for m, v in values.items()},
        "wall_s": [one["timing"]["wall_s"] for one in found],
        "uplink_bytes": found[0]["communication"]["uplink_bytes_per_device_total"],
    }


def table(result: dict[str, Any]) -> str:
    """Return the frontier as Markdown: means over seeds, with the lowest and highest."""
    head = f"| {result['dataset']}, test | epsilon | {' | '.join(METRICS)} | up, MB | seconds |"
    rows = [head, "|---" * 7 + "|"]
    for unit, points in result["points"].items():
        for p in points:
            shown = [f"{p['mean'][m]:.3f} ({p['low'][m]:.3f}-{p['high'][m]:.3f})" for m in METRICS]
            seconds = sum(p["wall_s"]) / len(p["wall_s"])
            shown += [f"{p['uplink_bytes'] / 1e6:.2f}", f"{seconds:.0f}"]
            rows.append(f"| unit {unit} | {p['epsilon']:g} | {' | '.join(shown)} |")
    for name, values in result["lines"].items():
        rows.append(f"| {name} | no bound | {' | '.join(f'{values[m]:.3f}' for m in METRICS)} | | |")
    return "\n".join(rows) + "\n"


def picture(result: dict[str, Any]) -> str:
    """Return the frontier as an SVG file: a panel a metric."""
    last = {unit: points[-1]["mean"]["recall@10"] for unit, points in result["points"].items()}
    said = ", ".join(f"{value:.3f} at unit {unit}" for unit, value in last.items())
    title = f"{result['dataset']}: quality against epsilon"
    chart = frontier_chart(result["points"], result["lines"], METRICS, key="frontier", alt=f"{title}; recall@10 {said}")
    return standalone(chart, title)


def main() -> int:
    """Run the frontier from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fedrecall.simulations.studies.frontier", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data-path", type=Path, help="folder of the data set; otherwise the cache")
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    told = "finished runs of preset open, to draw instead of training one a seed, by far the longest; none: no line"
    parser.add_argument("--open", type=Path, nargs="*", metavar="RUN", help=told)
    given = parser.parse_args()

    def tell(stage: str, done: int, total: int) -> None:
        if stage == "cells":
            print(f"{done} of {total} runs", file=sys.stderr, flush=True)

    try:
        found = frontier(given.dataset, given.data_path, given.out, given.seeds, opened=given.open, progress=tell)
    except FedrecallError as error:
        print(f"fedrecall: {error}", file=sys.stderr)
        return 3
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
