"""``fedrecall run``: the main job."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from fedrecall.cli.console import FormatOption, Output, table
from fedrecall.protocol.errors import FedrecallError

SHOWN = ("recall@10", "recall@50", "ndcg@10")


def run(
    context: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="A TOML file; without one the preset alone.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings to start from, user-eps8 by default.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A name of `fedrecall data list`.")] = None,
    data_path: Annotated[Path | None, typer.Option(help="The folder with the data set's files.")] = None,
    protocol: Annotated[
        Literal["loo", "temporal", "ncf", "random", "given"] | None, typer.Option(help="How events are held out.")
    ] = None,
    engine: Annotated[
        Literal["cohort", "device", "flower"] | None,
        typer.Option(help="Many devices at once, one after the other with Opacus, or on Flower's simulation engine."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; the run is a simulation.")] = None,
    override: Annotated[
        list[str] | None, typer.Option("-c", metavar="KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; a fresh one under runs/ if absent.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where the run in --out, else the newest, stopped.")
    ] = False,
    format: FormatOption = "text",
) -> None:
    """Train over private devices, build the recall index, evaluate, and write the report."""
    from fedrecall.simulations.config import load_config
    from fedrecall.simulations.runs.folder import choose_folder
    from fedrecall.simulations.runs.run import run as run_all

    output = Output(format)
    settings = load_config(
        config,
        preset,
        override,
        dataset=dataset,
        data_path=data_path,
        protocol=protocol,
        engine=engine,
        seed=seed,
    )
    folder = choose_folder(settings, out, resume=resume)
    try:
        with output.working() as progress:
            result = run_all(settings, out=folder, resume=resume, progress=progress)
    except KeyboardInterrupt:
        if not folder.exists():
            raise
        again = resume_command(context.obj, None if out else folder)
        raise FedrecallError(f"interrupted; nothing is lost: resume with `{again}`") from None
    output.answer(result, *summary(result, folder))


def resume_command(arguments: list[str], chosen: Path | None = None) -> str:
    """Return the command line that goes on with the run that ``arguments`` started in a folder ``chosen`` for it."""
    out = ["--out", _short(chosen)] if chosen else []
    return shlex.join(["fedrecall", *arguments, *out, *([] if "--resume" in arguments else ["--resume"])])


def _short(path: Path) -> str:
    """Spell a path from the working folder where it lies in it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def summary(result: dict[str, Any], folder: Path) -> list[Table | str]:
    """Return what a person wants to know of a finished run at once."""
    from fedrecall.simulations.report import words

    rows = [["this run", *(result["metrics"].get(name) for name in SHOWN)]] + [
        [words.BASELINES.get(name, name), *(row.get(name) for name in SHOWN)]
        for name, row in result["baselines"].items()
        if row
    ]
    title = f"{result['dataset']['name']}, {result['evaluation']['protocol']}, test"
    bounds = words.bounds(
        result["privacy"]["adversaries"], result["privacy"]["unit"], result["privacy"].get("warnings", ())
    )
    stamp = ["Simulation: the noise is from a known seed."] if result["privacy"]["simulated"] else []
    told = result["dataset"].get("order_warning")
    stamp += [f"Warning: {told}."] if told else []
    return [table(title, ["who", *SHOWN], rows), *bounds, *stamp, f"Report: {_short(folder / 'report.html')}"]
