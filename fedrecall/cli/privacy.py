"""``fedrecall privacy``: what a plan promises, and the noise that a promise needs."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from fedrecall.cli.console import FormatOption, Output, table

if TYPE_CHECKING:
    from fedrecall.protocol.plan import Plan

app = typer.Typer(help="Privacy: plan, calibrate.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def plan(
    config: Annotated[Path | None, typer.Argument(help="A TOML file; without one the preset alone.")] = None,
    preset: Annotated[str | None, typer.Option(help="Settings to start from, user-eps8 by default.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A name of `fedrecall data list`.")] = None,
    data_path: Annotated[Path | None, typer.Option(help="The folder with the data set's files.")] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Enrolled devices; those of the data set if absent.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("-c", metavar="KEY=VALUE", help="One setting; may be repeated.")
    ] = None,
    format: FormatOption = "text",
) -> None:
    """Show what a run with this configuration would release and promise, without running it."""
    from fedrecall.simulations.config import load_config
    from fedrecall.simulations.data.registry import load_dataset
    from fedrecall.simulations.plan import plan_for

    output = Output(format)
    settings = load_config(config, preset, override, dataset=dataset, data_path=data_path)
    with output.working() as progress:
        if devices is None:
            data_set = load_dataset(
                settings.data.name,
                data_path=settings.data.path,
                catalogue=settings.data.catalogue,
                k_core=settings.data.k_core,
                seed=settings.seed,
                progress=progress,
            )
            devices = data_set.events.n_users
        promised = plan_for(settings, devices)
        data = promised.to_dict() | {"digest": promised.digest(), "adversaries": _adversaries(promised)}
    output.answer(data, *_shown(promised, data["adversaries"]))


@app.command()
def calibrate(
    epsilon: Annotated[float, typer.Option(help="The bound against released-model.")],
    delta: Annotated[float, typer.Option(help="Usually below one over the number of devices.")],
    steps: Annotated[int, typer.Option(min=1, help="Number of releases.")],
    sample_rate: Annotated[float, typer.Option(help="The coin with which each device joins; 1 is everyone.")] = 1.0,
    unit: Annotated[Literal["user", "interaction"], typer.Option(help="What neighbours differ in.")] = "user",
    trust: Annotated[Literal["central", "local"], typer.Option(help="Who adds the noise.")] = "central",
    adjacency: Annotated[
        Literal["add_remove", "replace_one"], typer.Option(help="How neighbours differ.")
    ] = "add_remove",
    format: FormatOption = "text",
) -> None:
    """Find the noise multiplier with which so many releases spend this epsilon."""
    from fedrecall.privacy.accounting import cross_check
    from fedrecall.privacy.calibration import calibrate as solve
    from fedrecall.protocol.plan import Mechanism, Plan

    def plan_with(multiplier: float) -> Plan:
        release = Mechanism(
            name="release",
            sampling="everyone" if sample_rate == 1.0 else "poisson",
            sample_rate=sample_rate,
            noise_multiplier=multiplier,
            clip_norm=1.0,
            steps=steps,
            adjacency=adjacency,
        )
        return Plan(unit=unit, trust=trust, delta=delta, devices=1, mechanisms=(release,))

    output = Output(format)
    with output.working():
        multiplier = solve(plan_with, epsilon)
        found = plan_with(multiplier)
        data: dict[str, Any] = {
            "noise_multiplier": multiplier,
            "target_epsilon": epsilon,
            "unit": unit,
            "adversaries": _adversaries(found),
            "cross_check": cross_check(found),
        }
    said = f"noise multiplier {multiplier:.6g} (standard deviation of the noise in the sum over the clip norm)"
    output.answer(data, said, *_shown(found, data["adversaries"]))


def _adversaries(plan: "Plan") -> list[dict[str, Any]]:
    from fedrecall.privacy.accounting import account

    return [asdict(row) for row in account(plan)]


def _shown(plan: "Plan", adversaries: list[dict[str, Any]]) -> list[Table | str]:
    from fedrecall.simulations.report.words import bounds

    head = ["name", "steps", "sampling", "sample_rate", "clip_norm", "noise_multiplier", "adjacency"]
    rows = [[getattr(m, key) for key in head] for m in plan.mechanisms]
    return [
        table(f"releases, unit {plan.unit}, trust {plan.trust}", head, rows),
        *bounds(adversaries, plan.unit),
    ]
