"""``fedrecall evaluate``, ``recommend`` and ``compare``: reading finished runs."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from fedrecall.cli.console import Format, FormatOption, Output, table
from fedrecall.protocol.errors import UsageError

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, such as runs/latest.")]
DataPath = Annotated[
    Path | None, typer.Option(help="The folder with the data set's files, if it is no longer where the run read it.")
]


def evaluate(
    run: RunFolder,
    split: Annotated[Literal["validation", "test"], typer.Option(help="The held-out part.")] = "test",
    data_path: DataPath = None,
    format: FormatOption = "text",
) -> None:
    """Measure the released items of a run again."""
    from fedrecall.simulations.runs.inspect import evaluate_run

    output = Output(format)
    with output.working() as progress:
        result = evaluate_run(run, split, progress, data_path=data_path)
    same = "as run.json records" if result["as_recorded"] else "run.json records other figures"
    output.answer(result, table(f"{run}, {split}", ["metric", "value"], list(result["metrics"].items())), same)


def recommend(
    run: RunFolder,
    user: Annotated[str | None, typer.Option(help="Whose device asks, as the data set spells it.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Every device's list, into --out.")] = False,
    k: Annotated[int, typer.Option(min=1, help="How many items.")] = 10,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --all: .parquet, .trec (trec_eval) or .json (ranx).")
    ] = None,
    held_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --all: also what the test hid, to measure the lists by.")
    ] = None,
    data_path: DataPath = None,
    format: FormatOption = "text",
) -> None:
    """Show what one simulated device would recommend to its user, or write the lists of all."""
    if (user is None) == (not all):
        raise UsageError("give --user for one list, or --all with --out for everybody's")
    if all != (out is not None) or (held_out is not None and not all):
        raise UsageError("--out and --held-out are files of --all: give --all with --out, or neither")
    if user is not None:
        _recommend_one(run, user, k, data_path, format)
    elif out is not None:
        _recommend_all(run, k, out, held_out, data_path, format)


def _recommend_one(run: Path, user: str, k: int, data_path: Path | None, format: Format) -> None:
    from fedrecall.simulations.runs.inspect import recommend as recommend_for

    output = Output(format)
    with output.working() as progress:
        result = recommend_for(run, user, k, progress, data_path=data_path)
    rows = [[place, row["item"], row["title"], row["score"]] for place, row in enumerate(result["items"], 1)]
    because = ", ".join(row["title"] or row["item"] for row in result["because_of"])
    output.answer(
        result,
        table(f"for {user}", ["place", "item", "title", "score"], rows),
        f"Because of, latest first: {because}"
        if because
        else "This device knows no event yet: this is what the model holds for popular.",
    )


def _recommend_all(run: Path, k: int, out: Path, hidden: Path | None, data_path: Path | None, format: Format) -> None:
    from fedrecall.simulations.results import lists
    from fedrecall.simulations.runs.inspect import open_finished

    output = Output(format)
    for path in (out, *([hidden] if hidden else [])):
        lists.check_ending(path)
    with output.working() as progress:
        opened = open_finished(run, progress, data_path=data_path)
        found = lists.recommend_all(opened, k, progress)
        lists.write_lists(found, out)
        if hidden is not None:
            lists.write_held_out(lists.held_out(opened), hidden)
    users = opened.dataset.events.n_users
    result = {"run": str(run), "users": users, "k": k, "rows": found.num_rows, "out": str(out)}
    result["held_out"] = None if hidden is None else str(hidden)
    said = [f"What the test hid: {hidden}"] if hidden else []
    output.answer(result, f"{found.num_rows:,} rows of {users:,} users: {out}", *said)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of two or more runs.")],
    format: FormatOption = "text",
) -> None:
    """Put runs side by side; the others against the first, person by person where they can be."""
    from fedrecall.simulations.report.compare import compare_runs

    output = Output(format)
    with output.working():
        result = compare_runs(runs)
    output.answer(result, *_side_by_side(result), *_differences(result))


def _side_by_side(result: dict[str, Any]) -> list[Table]:
    """Return one column a run; epsilons stand on one row a unit, so that different units never share one."""
    runs = result["runs"]
    rows: list[list[Any]] = [
        [key, *(row[key] for row in runs)] for key in ("dataset", "protocol", "seed", "simulated", "delta")
    ]
    names = list(dict.fromkeys(name for row in runs for name in row["metrics"]))
    rows += [[name, *(row["metrics"].get(name) for row in runs)] for name in names]
    keys = dict.fromkeys((row["unit"], name) for row in runs for name in row["epsilon"])
    for unit, name in keys:
        cells = [_epsilon(row["epsilon"], name) if row["unit"] == unit else "" for row in runs]
        rows.append([f"epsilon (unit {unit}) {name}", *cells])
    return [table("runs", ["", *(row["run"] for row in runs)], rows)]


def _epsilon(epsilons: dict[str, Any], name: str) -> str:
    from fedrecall.simulations.report.words import round_up

    if name not in epsilons:
        return ""
    return "no bound" if epsilons[name] is None else round_up(epsilons[name])


def _differences(result: dict[str, Any]) -> list[Table | str]:
    head = ["metric", "difference", "95 % from", "to", "better", "worse", "sign test p"]
    keys = ["difference", "low", "high", "wins", "losses", "sign_test_p"]
    parts: list[Table | str] = []
    for pair in result["differences"]:
        title = f"{pair['run']} minus {pair['against']}"
        if "reason" in pair:
            parts.append(f"{title}: not paired, {pair['reason']}")
        else:
            rows = [[name, *(row[key] for key in keys)] for name, row in pair["metrics"].items()]
            parts.append(table(f"{title}, person by person", head, rows))
    return parts
