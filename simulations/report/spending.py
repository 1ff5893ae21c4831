"""The picture of a plan's epsilon by release, for people; the figures are ``fedrecall.privacy.accounting``'s."""

from collections.abc import Mapping, Sequence

from fedrecall.privacy.accounting.accounting import ADVERSARIES, epsilon_curve
from fedrecall.protocol.plan import Plan
from fedrecall.simulations.report.pictures import Line, line_chart, standalone
from fedrecall.simulations.report.words import UNITS, small

Curve = Sequence[tuple[float, float | None]]


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


def shared_lines(series: Mapping[str, Curve]) -> list[Line]:
    """Return one line for each adversary with finite epsilons; adversaries with equal lines share one."""
    shared: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, points in series.items():
        finite = tuple((x, y) for x, y in points if y is not None)
        if finite:
            shared.setdefault(finite, []).append(name)
    return [
        Line(name=",\n".join(names), x=[p[0] for p in points], y=[p[1] for p in points], steps=True)
        for points, names in shared.items()
    ]


def spending_svg(plan: Plan, curves: Mapping[str, Curve]) -> str:
    """Draw what ``spending`` returned as an SVG file; each mechanism's first release is marked."""
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


def tell(lines: Sequence[Line], what: str) -> str:
    """Return a line chart in words: where each line starts and ends."""
    ends = (f"{line.name} from {line.y[0]:.3f} to {line.y[-1]:.3f}" for line in lines)
    return f"Line chart of {what}: " + "; ".join(ends).replace(",\n", ", ")
