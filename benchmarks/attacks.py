"""Every attack on federated recommendation, without privacy against epsilon 8 and 2, as one Markdown table a data set.

    python benchmarks/attacks.py --data-path FOLDER [--datasets ml-100k ml-1m] [--kinds updates ...] [--seconds 900]

FOLDER holds a folder for each data set. Rounds are few: attacks on updates need no more. The open run is cut to 200
rounds. ``--kinds`` makes some of the attacks alone, which then share all of the time. A cell is the AUC with its 95 %
interval and the hits at 1 % false alarms; the empirical epsilon, where it is above 0; for promotion, the share of
devices that see the item before and after, and recall@10; for sizes, how many there are beyond the first.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from fedrecall.simulations.audit.attacks import SHARES, attack_steps
from fedrecall.simulations.audit.attempt import Attempt
from fedrecall.simulations.config import load_config
from fedrecall.simulations.training import train
from fedrecall.simulations.wiring import prepare

RUNS = {
    "open": ("open", ["rounds.count=200", "server.warmup_rounds=20"]),
    "epsilon 8": ("user-eps8", []),
    "epsilon 2": ("user-eps2", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, required=True)
    parser.add_argument("--datasets", nargs="+", default=["ml-100k", "ml-1m"])
    parser.add_argument("--seconds", type=float, default=900.0, help="for the attacks on each of the runs")
    parser.add_argument("--kinds", nargs="+", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for dataset in given.datasets:
        found: dict[str, dict[str, Attempt]] = {}
        for label, (preset, overrides) in RUNS.items():
            folder = given.data_path / dataset
            rows = attack(preset, overrides, dataset, folder, seed=given.seed, kinds=given.kinds, seconds=given.seconds)
            found[label] = {row.name: row for row in rows}
        print(table(dataset, found), flush=True)


def attack(
    preset: str, overrides: list[str], dataset: str, folder: Path, *, seed: int, kinds: list[str], seconds: float
) -> list[Attempt]:
    config = load_config(None, preset, ["threads=1", *overrides], dataset=dataset, data_path=folder, seed=seed)
    world = prepare(config, silent)[2]
    with tempfile.TemporaryDirectory() as out:
        arrays = train(world, Path(out), resume=False, validate=None, progress=silent).arrays

    def progress(what: str, done: int, total: int) -> None:
        print(f"\r{dataset} {preset}: {what} {done} of {total}        ", end="", file=sys.stderr)

    steps = attack_steps(world, arrays, seed, seconds / sum(SHARES[kind] for kind in kinds), progress)
    return [attempt for kind in kinds for attempt in steps[kind]()]


def silent(what: str, done: int, total: int) -> None:
    pass


def table(dataset: str, found: dict[str, dict[str, Attempt]]) -> str:
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
    hits = row.detail["tpr@1%"]
    words = f"{row.score:.3f} [{row.low:.3f}, {row.high:.3f}]" + ("" if hits is None else f", {hits:.1%} at 1 %")
    return words + (f"; epsilon >= {row.empirical_epsilon:.2f}" if row.empirical_epsilon else "")


if __name__ == "__main__":
    main()
