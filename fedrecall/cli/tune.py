"""``fedrecall tune``: search over a recipe's settings on validation."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fedrecall.cli.console import FormatOption, Output, table
from fedrecall.cli.options import ConfigFile, DataPath, DatasetOption, PresetOption, Settings


def tune(
    config: ConfigFile = None,
    preset: PresetOption = None,
    dataset: DatasetOption = None,
    data_path: DataPath = None,
    protocol: Annotated[
        Literal["loo", "temporal", "random", "given"] | None, typer.Option(help="How events are held out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    override: Settings = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search", metavar="KEY=LOW:HIGH[:log]", help="A setting to search; repeated. Else the private start's."
        ),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trainings in all; the first is the preset itself.")] = 30,
    metric: Annotated[str, typer.Option(help="What to raise, on validation.")] = "recall@50",
    count_noise: Annotated[
        float,
        typer.Option(
            min=0.0, help="Noise on each trial's validation sum over users; the answer then states the whole epsilon."
        ),
    ] = 0.0,
    out: Annotated[Path, typer.Option(help="The search's folder.")] = Path("runs/tune"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in --out.")] = False,
    format: FormatOption = "text",
) -> None:
    """Search over settings on validation, resumable; write the best as a TOML file."""
    from fedrecall.simulations.config import load_config
    from fedrecall.simulations.studies.tune import BEST, DEFAULT, PICTURE, parse_range
    from fedrecall.simulations.studies.tune import tune as search_settings

    output = Output(format)
    settings = load_config(config, preset, override, dataset=dataset, data_path=data_path, protocol=protocol, seed=seed)
    ranges = tuple(parse_range(text) for text in search) if search else DEFAULT
    with output.working() as progress:
        result = search_settings(
            settings,
            out=out,
            ranges=ranges,
            trials=trials,
            metric=metric,
            count_noise=count_noise,
            resume=resume,
            progress=progress,
        )
    output.answer(result, *_told(result, out / BEST, out / PICTURE))


def _told(result: dict[str, Any], best: Path, picture: Path) -> list[Any]:
    chosen, metric, privacy = result["best"], result["metric"], result["privacy"]
    rows = [[key, value] for key, value in chosen["settings"].items()] or [["the preset's own", ""]]
    epsilon = "no bound" if privacy["epsilon"] is None else f"epsilon {privacy['epsilon']:.2f}"
    return [
        table(f"best of {len(result['trials'])} trials, number {chosen['trial'] + 1}", ["setting", "value"], rows),
        f"{metric} on validation: {chosen['value']:.4f}; the preset: {result['preset']['value']:.4f}",
        f"What the search cost on real users: {epsilon} at delta {privacy['delta']:g}, unit {privacy['unit']}, "
        f"against {privacy['adversary']} ({privacy['reason']})",
        f"Run it: fedrecall run {best}    Picture: {picture}",
    ]
