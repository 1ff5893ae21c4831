"""``fedrecall privacy``: what a plan promises, the noise that a promise needs, and what was spent."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from fedrecall.cli.chart import text_chart
from fedrecall.cli.console import FormatOption, Output, table
from fedrecall.cli.options import ConfigFile, DataPath, DatasetOption, PresetOption, Settings
from fedrecall.cli.privacy import noise as privacy_noise
from fedrecall.cli.privacy.noise import adversary_rows, shown
from fedrecall.protocol.errors import UsageError

if TYPE_CHECKING:
    from fedrecall.protocol.plan import Plan

app = typer.Typer(help="Privacy: plan, fit, calibrate, ledger.", no_args_is_help=True, rich_markup_mode=None)
app.command()(privacy_noise.calibrate)
app.command()(privacy_noise.fit)


@app.command()
def plan(
    config: ConfigFile = None,
    preset: PresetOption = None,
    dataset: DatasetOption = None,
    data_path: DataPath = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Enrolled devices; those of the data set if absent.")
    ] = None,
    override: Settings = None,
    picture: Annotated[Path | None, typer.Option(help="Also draw epsilon by release into this SVG file.")] = None,
    format: FormatOption = "text",
) -> None:
    """Show what a run with this configuration would release and promise, without running it."""
    from fedrecall.protocol.files import write_atomic
    from fedrecall.simulations.config import load_config
    from fedrecall.simulations.report.spending import spending, spending_svg
    from fedrecall.simulations.runs.data import load_data
    from fedrecall.simulations.runs.promises import warnings_of
    from fedrecall.simulations.training.plan import plan_for

    output = Output(format)
    settings = load_config(config, preset, override, dataset=dataset, data_path=data_path)
    with output.working() as progress:
        if devices is None:
            devices = load_data(settings, progress).events.n_users
        promised = plan_for(settings, devices)
        curves = spending(promised)
        data = promised.to_dict() | {
            "digest": promised.digest(),
            "adversaries": adversary_rows(promised),
            "warnings": warnings_of(promised),
            "curve": curves,
        }
        if picture is not None:
            if not curves:
                raise UsageError(f"--picture {picture}: this plan bounds nobody, there is nothing to draw")
            write_atomic(picture, spending_svg(promised, curves).encode())
    said = [f"Picture: {picture}"] if picture is not None else []
    output.answer(data, *shown(promised, data["adversaries"], data["warnings"]), *_chart(promised, curves), *said)


@app.command()
def ledger(
    run: Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="The folder of a run, or a server's ledger.")],
    format: FormatOption = "text",
) -> None:
    """Verify a server's ledger and show what was spent against its plan."""
    from fedrecall.privacy.ledger.ledger_report import ledger_report

    output = Output(format)
    with output.working():
        data = ledger_report(run)
    output.answer(data, *_spending(data))


def _spending(data: dict[str, Any]) -> list[Table | str]:
    from fedrecall.simulations.report.words import bounds

    window = "" if data["renews"] == "never" else f" in the {data['renews']} from {data['window']}"
    head = ["name", "spent", "allowed", "spent_ever"]
    rows = [[row[key] for key in head] for row in data["mechanisms"]]
    return [
        table(f"releases{window}, unit {data['unit']}, trust {data['trust']}", head, rows),
        "Spent so far:",
        *bounds(data["adversaries"], data["unit"]),
        f"The chain is whole: {data['head']['lines']} lines, the last with hash {data['head']['sha256']}",
        data["rollback"],
    ]


def _chart(plan: "Plan", curves: dict[str, Any]) -> list[str]:
    from fedrecall.simulations.report.lines import shared_lines
    from fedrecall.simulations.report.spending import marks
    from fedrecall.simulations.report.words import small

    lines = {line.name.replace(",\n", ", "): list(zip(line.x, line.y, strict=True)) for line in shared_lines(curves)}
    if not lines:
        return []
    window = "" if plan.renews == "never" else f" in one {plan.renews}"
    y_label = f"epsilon (unit {plan.unit}, delta {small(plan.delta)})"
    return ["", text_chart(lines, x_label=f"releases so far{window}", y_label=y_label, marks=marks(plan))]
