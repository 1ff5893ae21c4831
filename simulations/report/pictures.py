"""The report's pictures: small inline SVGs that take their colours and font from the page's style sheet.

The same numbers give the same bytes: no date, no random identifiers. Text stays text, so that it can be
searched, read aloud and scaled.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedrecall.simulations.report.lines import Line

# Stand-ins that the SVG is drawn with, and the style-sheet variable that replaces each.
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_SERIES = ("#040404", "#050505", "#060606", "#070707")
_QUIET = "#080808"
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _QUIET: "var(--quiet)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(_SERIES, 1)},
}
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1, 2)))
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedrecall",
    "text.parse_math": False,
    "font.size": 10,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "text.color": _INK,
}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its interval."""

    value: float
    low: float
    high: float


def line_chart(
    lines: Sequence[Line],
    *,
    key: str,
    alt: str,
    x_label: str,
    y_label: str,
    marks: Mapping[str, float] | None = None,
) -> Markup:
    """Draw lines from zero up, each named at its end; ``key`` keeps the SVG's ids apart from others'.

    ``marks`` are named places on the x axis, each with a thin line up and its name at the top.
    """
    with rc_context(_STYLE):
        figure, axes = _figure(5.4, 2.9)
        for i, line in enumerate(lines):
            axes.plot(
                line.x,
                line.y,
                color=_SERIES[i % len(_SERIES)],
                linestyle=_DASHES[i % len(_DASHES)],
                linewidth=2.0,
                drawstyle="steps-post" if line.steps else "default",
                marker="o" if len(line.x) <= 40 and not line.steps else "",
                markersize=3.5,
            )
        top = max((max(line.y) for line in lines), default=0.0) or 1.0
        axes.set_ylim(0.0, top * 1.12)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axes.grid(axis="x", visible=False)
        for i, (name, place) in enumerate((marks or {}).items()):
            # Each line ends below the names of the marks before it, so that it crosses none of them.
            height = 1.0 - i * min(0.08, 0.8 / len(marks or {}))
            axes.axvline(place, ymax=height, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
            axes.annotate(
                name,
                (place, height),
                xycoords=("data", "axes fraction"),
                xytext=(3, -1),
                textcoords="offset points",
                va="top",
                color=_MUTED,
                size=8.5,
            )
        _name_at_end(axes, lines, top)
        return _svg(figure, key, alt)


def frontier_chart(
    points: Mapping[str, Sequence[Mapping[str, Any]]],
    lines: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str],
    *,
    key: str,
    alt: str,
) -> Markup:
    """Draw a panel a metric: one line a privacy unit over epsilon, and a level line for each rival, which has no bound.

    Epsilon is logarithmic; a line is the mean, with a band from the lowest to the highest.

    Args:
        points: by unit, each with ``epsilon`` and ``mean``, ``low``, ``high`` by metric.
        lines: a rival's metrics by its name.
        metrics: what is drawn.
        key: keeps the SVG's ids apart from others'.
        alt: what the picture says, for those who cannot see it.
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(10.2, 3.5), layout="constrained")
        panels = figure.subplots(1, len(metrics))
        for axes, metric in zip(panels, metrics, strict=True):
            for i, (unit, row) in enumerate(points.items()):
                x, mean = [p["epsilon"] for p in row], [p["mean"][metric] for p in row]
                spread = [[p["low"][metric] for p in row], [p["high"][metric] for p in row]]
                axes.fill_between(x, *spread, color=_SERIES[i], alpha=0.2, linewidth=0)
                style = {"color": _SERIES[i], "linestyle": _DASHES[i], "marker": "o", "markersize": 3.5}
                axes.plot(x, mean, linewidth=2.0, label=f"unit {unit}", **style)
            for name, values in lines.items():
                axes.axhline(values[metric], color=_MUTED, linewidth=0.9, linestyle=_DASHES[2])
                place = (0.01, values[metric])
                axes.annotate(
                    name,
                    place,
                    xycoords=("axes fraction", "data"),
                    xytext=(0, 1),
                    textcoords="offset points",
                    color=_MUTED,
                    size=8,
                )
            axes.set_xscale("log", base=2)
            ticks = sorted({p["epsilon"] for row in points.values() for p in row})
            axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
            axes.set_ylim(bottom=0.0)
            axes.set_xlabel("epsilon at delta 1e-5")
            axes.set_title(metric, color=_INK, size=10)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        return _svg(figure, key, alt)


def bar_chart(values: Mapping[str, float], *, key: str, alt: str, highlight: str, digits: int = 3) -> Markup:
    """Draw one horizontal bar a name, longest first, with its value; the bar ``highlight`` stands out."""
    with rc_context(_STYLE):
        names = sorted(values, key=lambda name: (values[name], name == highlight))
        figure, axes = _figure(3.9, 0.2 + 0.31 * len(names))
        colours = [_SERIES[0] if name == highlight else _QUIET for name in names]
        axes.barh(range(len(names)), [values[name] for name in names], height=0.68, color=colours)
        span = max([*values.values(), 0.0]) or 1.0
        for y, name in enumerate(names):
            weight = "bold" if name == highlight else "normal"
            axes.text(
                values[name] + 0.02 * span,
                y,
                f"{values[name]:.{digits}f}",
                va="center",
                weight=weight,
                size=9.5,
            )
        axes.set_yticks(range(len(names)), names)
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            label.set_color(_INK)
            label.set_fontweight("bold" if name == highlight else "normal")
        axes.set_xlim(0.0, span * 1.18)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        _horizontal(axes)
        return _svg(figure, key, alt)


def interval_chart(
    panels: Mapping[str, Mapping[str, Mapping[str, Interval]]], *, key: str, alt: str, x_label: str, chance: float
) -> Markup:
    """Draw a panel each, side by side: a row a name, in it a dot with its interval for each series, and chance.

    Args:
        panels: by title, rows by name, intervals by series; a row that a panel lacks is empty there.
        key: keeps the SVG's ids apart from others'.
        alt: what the picture says, for those who cannot see it.
        x_label: what is drawn.
        chance: where a thin line stands.
    """
    with rc_context(_STYLE):
        names = list(dict.fromkeys(name for rows in panels.values() for name in rows))
        series = list(dict.fromkeys(label for rows in panels.values() for row in rows.values() for label in row))
        figure = Figure(figsize=(10.2, 1.2 + 0.27 * len(names)), layout="constrained")
        drawn = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (title, rows) in zip(drawn, panels.items(), strict=True):
            axes.axvline(chance, color=_MUTED, linewidth=0.9)
            for i, label in enumerate(series):
                own = [(y, list(rows[name])) for y, name in enumerate(names) if label in rows.get(name, {})]
                found = [rows[names[y]][label] for y, _ in own]
                axes.errorbar(
                    [one.value for one in found],
                    [y + 0.26 * (there.index(label) - (len(there) - 1) / 2) for y, there in own],
                    # A bootstrap's interval may leave its own figure out by a hair.
                    xerr=[
                        [max(0.0, one.value - one.low) for one in found],
                        [max(0.0, one.high - one.value) for one in found],
                    ],
                    color=_SERIES[i % len(_SERIES)],
                    fmt="osD^"[i % 4],
                    markersize=3,
                    linewidth=1.2,
                    label=label,
                )
            axes.set_title(title, color=_INK, size=10)
            axes.set_xlabel(x_label)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
        drawn[0].set_yticks(range(len(names)), names)
        for label in drawn[0].get_yticklabels():
            label.set_color(_INK)
            label.set_fontsize(8)
        handles, labels = drawn[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        return _svg(figure, key, alt)


def paired_bars(
    labels: Sequence[str],
    pairs: Mapping[str, Sequence[float]],
    *,
    key: str,
    alt: str,
    x_label: str,
    y_label: str,
) -> Markup:
    """Draw, for each label, one vertical bar a series of ``pairs``, side by side."""
    with rc_context(_STYLE):
        figure, axes = _figure(5.4, 2.9)
        width = 0.8 / len(pairs)
        for i, (name, values) in enumerate(pairs.items()):
            at = [x - 0.4 + width * (i + 0.5) for x in range(len(labels))]
            colour = (_QUIET, _SERIES[0], *_SERIES[1:])[i]
            axes.bar(at, values, width=width * 0.92, color=colour, label=name)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(axis="x", visible=False)
        axes.legend(frameon=False, loc="upper right")
        return _svg(figure, key, alt)


def stacked_bars(parts: Mapping[str, Mapping[str, float]], *, key: str, alt: str, x_label: str, unit: float) -> Markup:
    """Draw one horizontal bar a name, stacked from its parts, which are divided by ``unit``."""
    with rc_context(_STYLE):
        names = list(parts)[::-1]
        kinds = list(dict.fromkeys(kind for row in parts.values() for kind in row))
        figure, axes = _figure(5.4, 1.1 + 0.38 * len(names))
        left = [0.0] * len(names)
        for i, kind in enumerate(kinds):
            values = [parts[name].get(kind, 0.0) / unit for name in names]
            colour = (_SERIES[0], _QUIET, *_SERIES[1:])[i]
            axes.barh(range(len(names)), values, left=left, height=0.62, color=colour, label=kind)
            left = [a + b for a, b in zip(left, values, strict=True)]
        axes.set_yticks(range(len(names)), names)
        for label in axes.get_yticklabels():
            label.set_color(_INK)
        axes.set_xlim(0.0, (max(left, default=0.0) or 1.0) * 1.05)
        axes.set_xlabel(x_label)
        axes.legend(frameon=False, ncols=len(kinds), loc="lower right", bbox_to_anchor=(1.0, 1.0))
        _horizontal(axes)
        return _svg(figure, key, alt)


def standalone(svg: Markup, title: str) -> str:
    """Return a drawing of this module as an SVG file, in the colours of the report, light or dark."""
    sheet = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    colours = sheet[: sheet.index("* {")]
    style = f"{colours}svg {{ background: var(--card); font-family: var(--font); }}"
    head = f'<title>{escape(title)}</title>\n<style type="text/css">\n{escape(style)}</style>'
    space = 'xmlns="http://www.w3.org/2000/svg"'
    return str(svg).replace("<svg ", f"<svg {space} ", 1).replace(">", f">\n{head}\n", 1) + "\n"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of so many inches and its only axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _horizontal(axes: Axes) -> None:
    """Make the axes of horizontal bars quiet."""
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _name_at_end(axes: Axes, lines: Sequence[Line], top: float) -> None:
    """Write each line's name right of its last point, far enough from the other names to be read."""
    ends = sorted((line.y[-1], i) for i, line in enumerate(lines) if len(line.y))
    floor = -1.0
    for y, i in ends:
        place = max(y, floor)
        floor = place + 0.09 * top
        axes.annotate(
            lines[i].name,
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=_SERIES[i % len(_SERIES)],
            weight="bold",
            annotation_clip=False,
        )


def _svg(figure: Figure, key: str, alt: str) -> Markup:
    """Return the figure as an ``<svg>`` element fit to stand in a page beside others."""
    figure.patch.set_alpha(0.0)
    for axes in figure.axes:
        axes.patch.set_alpha(0.0)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # The metadata holds the date and addresses of vocabularies.
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<style type=\"text/css\">.*?</style>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'href="#', f'href="#{key}-', text)
    text = re.sub(r"url\(#", f"url(#{key}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # Two spellings of the font, one for each range of matplotlib versions; the page's own font is inherited.
    text = re.sub(r"font-family: [^;\"]*; ?", "", text)
    text = re.sub(r"font: ((?:bold |700 )?[\d.]+px) [^;\"]*", r"font: \1 var(--font)", text)
    box = re.search(r'viewBox="([^"]*)"', text)
    head = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{escape(alt)}"'
    head += ' xmlns:xlink="http://www.w3.org/1999/xlink">'
    # Safe as markup: our own drawing, whose texts matplotlib's writer has escaped.
    return Markup(head + text[text.index(">") + 1 :])
