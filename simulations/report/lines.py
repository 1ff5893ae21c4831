"""The lines of a chart, before anybody draws them: their points, who shares one, and what they say in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Curve = Sequence[tuple[float, float | None]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart: ``x`` and ``y`` have one length; ``steps`` holds a value until the next point."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    steps: bool = False


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


def tell(lines: Sequence[Line], what: str) -> str:
    """Return a line chart in words: where each line starts and ends."""
    ends = (f"{line.name} from {line.y[0]:.3f} to {line.y[-1]:.3f}" for line in lines)
    return f"Line chart of {what}: " + "; ".join(ends).replace(",\n", ", ")
