"""``fedrecall run``: the main job."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from fedrecall.cli.console import FormatOption, Output, table
from fedrecall.cli.options import ConfigFile, DataPath, DatasetOption, PresetOption, Settings
from fedrecall.protocol.errors import FedrecallError

SHOWN = ("recall@10", "recall@50", "ndcg@10")


def run(
    config: ConfigFile = None,
    preset: PresetOption = None,
    dataset: DatasetOption = None,
    data_path: DataPath = None,
    protocol: Annotated[
        Literal["loo", "temporal", "ncf", "random", "given"] | None, typer.Option(help="How events are held out.")
    ] = None,
    engine: Annotated[
        Literal["cohort", "device", "flower"] | None,
        typer.Option(help="Many devices at once, one after the other with Opacus, or on Flower's simulation engine."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random; the run is a simulation.")] = None,
    override: Settings = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; a fresh one under runs/ if absent.")] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where the run in --out, else the newest, stopped; it has its settings."),
    ] = False,
    format: FormatOption = "text",
) -> None:
    """Train over private devices, build the recall index, evaluate, and write the report."""
    from fedrecall.simulations.config import load_config
    from fedrecall.simulations.runs.folder import CONFIG, choose_folder, resumed_settings
    from fedrecall.simulations.runs.run import run as run_all

    output = Output(format)
    chosen: dict[str, Any] = {"dataset": dataset, "data_path": data_path, "protocol": protocol}
    chosen |= {"engine": engine, "seed": seed}
    if resume:
        settings = resumed_settings(out, config, preset, override, **chosen)
    else:
        settings = load_config(config, preset, override, **chosen)
    folder = choose_folder(settings, out, resume=resume)
    try:
        with output.working() as progress:
            result = run_all(settings, out=folder, resume=resume, progress=progress)
    except KeyboardInterrupt:
        if not (folder / CONFIG).exists():
            raise
        again = resume_command(folder, settings.flower.address)
        raise FedrecallError(f"interrupted; nothing is lost: resume with `{again}`") from None
    output.answer(result, *summary(result, folder))


def resume_command(folder: Path, cluster: str | None = None) -> str:
    """Return the command line that goes on with the run in ``folder``; the folder does not know its ``cluster``."""
    where = ["-c", f"flower.address={cluster}"] if cluster else []
    return shlex.join(["fedrecall", "run", "--resume", "--out", _short(folder), *where])


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
