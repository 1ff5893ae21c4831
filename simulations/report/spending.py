"""The picture of a plan's epsilon by release, for people; the figures are ``fedrecall.privacy.accounting``'s."""

from collections.abc import Mapping

from fedrecall.privacy.accounting.accounting import ADVERSARIES, epsilon_curve
from fedrecall.protocol.plan import Plan
from fedrecall.simulations.report.lines import Curve, shared_lines, tell
from fedrecall.simulations.report.words import UNITS, small


def spending(plan: Plan) -> dict[str, list[tuple[int, float | None]]]:
    """Return (releases so far, epsilon) along the plan for each adversary that the whole plan bounds."""
    curves = {name: epsilon_curve(plan, name) for name in ADVERSARIES}
    return {name: curve for name, curve in curves.items() if curve and curve[-1][1] is not None}


def marks(plan: Plan) -> dict[str, float]:
    """Return where each mechanism that releases something begins: its name and its first release."""
    begins: dict[str, float] = {}
    done = 0
    for mechanism in plan.mechanisms:
        if mechanism.steps:
            begins[mechanism.name] = done + 1
        done += mechanism.steps
    return begins


def spending_svg(plan: Plan, curves: Mapping[str, Curve]) -> str:
    """Draw what ``spending`` returned as an SVG file; each mechanism's first release is marked."""
    from fedrecall.simulations.report.pictures import line_chart, standalone  # loads matplotlib

    lines = shared_lines(curves)
    window = "" if plan.renews == "never" else f" in one {plan.renews}"
    title = f"Epsilon by release at delta {small(plan.delta)}{window}; unit {plan.unit}, {UNITS[plan.unit]}"
    svg = line_chart(
        lines,
        key="epsilon",
        alt=f"{title}. {tell(lines, 'epsilon by release')}",
        x_label=f"releases so far{window}",
        y_label=f"epsilon (unit {plan.unit}, delta {small(plan.delta)})",
        marks=marks(plan),
    )
    return standalone(svg, title)
