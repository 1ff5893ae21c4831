"""``fedrecall privacy calibrate`` and ``fit``: the noise that a promise needs, and the plan that fits a budget."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from fedrecall.cli.console import FormatOption, Output, table
from fedrecall.protocol.errors import UsageError

if TYPE_CHECKING:
    from fedrecall.protocol.plan import Plan

UnitOption = Annotated[Literal["user", "interaction"], typer.Option(help="What neighbours differ in.")]
TrustOption = Annotated[Literal["central", "local", "distributed"], typer.Option(help="Who adds the noise.")]
Kind = Literal["everyone", "poisson", "fixed_size", "limited"]


def calibrate(
    epsilon: Annotated[float, typer.Option(help="The bound against released-model.")],
    delta: Annotated[float, typer.Option(help="Below one over the number of devices.")],
    steps: Annotated[int, typer.Option(min=1, help="Number of releases.")],
    sampling: Annotated[Kind | None, typer.Option(help="Who takes part; by the other options if absent.")] = None,
    sample_rate: Annotated[float | None, typer.Option(help="Share of the devices in a release.")] = None,
    cohort_size: Annotated[int | None, typer.Option(min=1, help="Instead of the rate: devices of a release.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Enrolled devices.")] = None,
    participations: Annotated[int | None, typer.Option(help="Limited: the most often that one takes part.")] = None,
    min_gap: Annotated[int | None, typer.Option(help="Limited: its rounds lie at least so far apart.")] = None,
    bands: Annotated[int | None, typer.Option(help="Limited: rounds of correlated noise; the best if absent.")] = None,
    unit: UnitOption = "user",
    trust: TrustOption = "central",
    adjacency: Annotated[
        Literal["add_remove", "replace_one", "zero_out"] | None,
        typer.Option(help="How neighbours differ; if absent what is sound for unit, trust and sampling."),
    ] = None,
    min_survivors: Annotated[int, typer.Option(min=0, help="Below so many contributions a release is void.")] = 0,
    colluders: Annotated[int, typer.Option(min=0, help="Distributed: survivors whose noise may be known.")] = 0,
    format: FormatOption = "text",
) -> None:
    """Find the noise multiplier with which so many releases spend this epsilon."""
    from fedrecall.privacy.accounting.accounting import cross_check
    from fedrecall.privacy.accounting.delta import delta_warning
    from fedrecall.privacy.accounting.questions import plan

    output = Output(format)
    with output.working():
        found = plan(
            delta=delta,
            steps=steps,
            epsilon=epsilon,
            sampling=sampling,
            sample_rate=sample_rate,
            cohort_size=cohort_size,
            devices=devices,
            participations=participations,
            min_gap=min_gap,
            bands=bands,
            unit=unit,
            trust=trust,
            adjacency=adjacency,
            min_survivors=min_survivors,
            colluders=colluders,
        )
        multiplier = found.mechanisms[0].noise_multiplier
        checks = cross_check(found)
        data: dict[str, Any] = {
            "noise_multiplier": multiplier,
            "target_epsilon": epsilon,
            "unit": unit,
            "mechanism": asdict(found.mechanisms[0]),
            "adversaries": adversary_rows(found),
            "cross_check": checks,
            "warnings": [warning] if (warning := delta_warning(delta, devices)) else [],
        }
    said = f"noise multiplier {multiplier:.6g} (standard deviation of the noise in the sum over the clip norm)"
    if trust == "distributed":
        share = multiplier / math.sqrt(min_survivors - colluders)
        said += f"; each device's share of it: {share:.6g}"
        data["share_noise_multiplier"] = share
    names = {"pld": "PLD", "rdp": "RDP", "closed_form": "closed form"}
    sides = ", ".join(f"{names[k]} {'-' if v is None else f'{v:.4f}'}" for k, v in checks.items())
    terms = f"unit {unit}, delta {delta:g}, {found.mechanisms[0].adjacency}, against released-model"
    promised = shown(found, data["adversaries"], data["warnings"])
    output.answer(data, said, *promised, f"Cross-check of epsilon ({terms}): {sides}")


def fit(
    devices: Annotated[int, typer.Option(min=1, help="Enrolled devices.")],
    epsilon: Annotated[float, typer.Option(help="The budget against released-model.")],
    delta: Annotated[float | None, typer.Option(help="If absent 1e-5, or less where devices are many.")] = None,
    unit: UnitOption = "user",
    trust: TrustOption = "central",
    sampling: Annotated[Kind | None, typer.Option(help="The kind of cohort; if absent all kinds that can pay.")] = None,
    share: Annotated[float, typer.Option(help="Of the budget's mu^2, for the rounds; the start has the rest.")] = 1.0,
    dimension: Annotated[int | None, typer.Option(min=1, help="How many numbers the rounds train.")] = None,
    clip: Annotated[float | None, typer.Option(help="The clip; if absent, noise is in units of it.")] = None,
    rounds: Annotated[int, typer.Option(help="The most rounds.")] = 1000,
    min_rounds: Annotated[int, typer.Option(help="The fewest rounds worth training.")] = 10,
    cohort: Annotated[int | None, typer.Option(min=1, help="The most devices of a round.")] = None,
    device_rounds: Annotated[float | None, typer.Option(help="The most rounds a device, as expected.")] = None,
    uplink: Annotated[float | None, typer.Option(help="The most bytes a device sends; needs --dimension.")] = None,
    show: Annotated[int, typer.Option(min=1, help="How many plans to show.")] = 8,
    choose: Annotated[int, typer.Option(min=1, help="Of which plan to print the configuration.")] = 1,
    format: FormatOption = "text",
) -> None:
    """List the cohorts, rounds and noise that fit a budget, a number of devices and what each may spend."""
    from fedrecall.cli.privacy.fit import configuration, explained, row, rows_table
    from fedrecall.privacy.accounting.candidates import Need
    from fedrecall.privacy.accounting.delta import delta_for
    from fedrecall.privacy.accounting.planner import fit_plans

    if uplink is not None:
        if dimension is None:
            raise UsageError(f"--uplink {uplink:g} needs --dimension: an update is four bytes a number")
        device_rounds = min(device_rounds or math.inf, uplink / (4 * dimension))
    output = Output(format)
    with output.working() as progress:
        need = Need(
            devices=devices,
            epsilon=epsilon,
            delta=delta or delta_for(devices),
            unit=unit,
            trust=trust,
            samplings=(sampling,) if sampling else (),
            share=share,
            dimension=dimension,
            clip_norm=clip or 1.0,
            min_rounds=min_rounds,
            max_rounds=rounds,
            max_cohort=cohort,
            max_device_rounds=device_rounds,
        )
        fits = fit_plans(need, show, lambda done, total: progress("plans", done, total))
        if choose > len(fits):
            raise UsageError(f"--choose is {choose}: there are {len(fits)} plans; raise --show")
        toml, reason = configuration(need, fits[choose - 1], clip)
    data = {
        "unit": unit,
        "delta": need.delta,
        "fits": [row(found) for found in fits],
        "chosen": choose,
        "configuration": toml,
        "reason": reason,
    }
    output.answer(data, rows_table(need, fits), *explained(need, fits[choose - 1], choose), toml or reason)


def adversary_rows(plan: "Plan") -> list[dict[str, Any]]:
    """Return the rows of ``account`` as plain data."""
    from fedrecall.privacy.accounting.accounting import account

    return [asdict(row) for row in account(plan)]


def shown(plan: "Plan", adversaries: list[dict[str, Any]], warnings: Sequence[str] = ()) -> list[Table | str]:
    """Return a plan's releases and bounds for people."""
    from fedrecall.simulations.report.words import bounds, sampler, settings
    from fedrecall.simulations.runs.promises import mechanism_section

    head = ["name", "steps", "who takes part", "clip_norm", "noise_multiplier", "adjacency"]
    rows = [
        [m.name, m.steps, sampler(asdict(m)), m.clip_norm, m.noise_multiplier, m.adjacency] for m in plan.mechanisms
    ]
    remarks = [f"{m.name}: {text}" for m in plan.mechanisms for text in settings(mechanism_section(m))]
    return [
        table(f"releases, unit {plan.unit}, trust {plan.trust}", head, rows),
        *remarks,
        *bounds(adversaries, plan.unit, warnings),
    ]
