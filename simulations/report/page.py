"""``report.html``: one page for people, from ``run.json`` alone, in one file that needs no network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedrecall.protocol.errors import UsageError
from fedrecall.protocol.files import write_atomic
from fedrecall.simulations.report import words
from fedrecall.simulations.report.lines import Line, shared_lines, tell
from fedrecall.simulations.report.pictures import bar_chart, line_chart, paired_bars, stacked_bars, standalone

_RIVALS = {
    "most_popular": "most popular",
    "own_first": "each person's own items first",
    "central": "the same model trained centrally",
}
_ABLATED = ("recall@10", "recall@50", "ndcg@10", "coverage@10")
_COMPARED = ("recall@10", "recall@50", "ndcg@10")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page: ``head`` names the columns; the first cell of a row is its header."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    strong: frozenset[int] = frozenset()

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, so that it is set flush right."""
        columns = [[row[i] for row in self.rows if row[i] is not None] for i in range(len(self.head))]
        return [bool(c) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in c) for c in columns]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture with what it shows in words and the numbers that it was drawn from."""

    svg: Markup
    caption: str
    table: Table


def write_report(run: Mapping[str, Any], out: Path) -> None:
    """Write the page of ``run`` (the content of ``run.json``) to the file ``out``, atomically.

    Sections whose part of ``run`` is absent are left out. The same run gives the same bytes. Texts from the
    run are escaped. Raises KeyError when a part that the contract demands is missing.
    """
    write_atomic(out, render(run).encode())


def render(run: Mapping[str, Any]) -> str:
    """Return the page of ``run`` as HTML."""
    environment = Environment(
        loader=PackageLoader("fedrecall.simulations.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.number, "size": words.size, "duration": words.duration}
    source, _, _ = PackageLoader("fedrecall.simulations.report", ".").get_source(environment, "report.css")
    return environment.get_template("report.html").render(
        run=run,
        css=Markup(source),
        words=words,
        main=next((a for a in run["privacy"]["adversaries"] if a["name"] == "released-model"), None),
        bounds=words.bounds(run["privacy"]["adversaries"], run["privacy"]["unit"], run["privacy"].get("warnings", ())),
        sentences=_sentences(run),
        pictures=_pictures(run),
        tables=_tables(run),
        definitions={name: words.metric_name(name) for name in run["metrics"] if words.metric_name(name)},
    )


def _sentences(run: Mapping[str, Any]) -> dict[str, str]:
    """Return the plain-word sentences of the first screen."""
    metrics, baselines = run["metrics"], run["baselines"]
    found = (
        f"{words.hidden(run['evaluation'])} {metrics['recall@10']:.1%} of those "
        f"items were among the first 10 that the person would have been shown, and "
        f"{metrics['recall@50']:.1%} among the first 50."
    )
    again = words.again(run["evaluation"])
    rivals = {name: row["recall@50"] for name, row in baselines.items() if row and "recall@50" in row}
    said = {name: who for name, who in _RIVALS.items() if name in rivals}
    others = [name for name in rivals if name not in (*_RIVALS, "local_only")]
    if others:
        best = max(others, key=lambda name: rivals[name])
        said[best] = f"{words.BASELINES.get(best, best)} (the best of those that see all events in one place)"
    order = sorted(said, key=lambda name: rivals[name])
    compared = [f"{words.versus(metrics['recall@50'], rivals[name])} {said[name]}" for name in order]
    return {
        "found": f"{found} {again}" if again else found,
        "order": run["dataset"].get("order_warning") or "",
        "compared": f"In recall@50 that is {', '.join(compared)}." if compared else "",
    }


def _pictures(run: Mapping[str, Any]) -> dict[str, Any]:
    """Draw what the run has numbers for."""
    pictures: dict[str, Any] = {"baselines": _baseline_pictures(run)}
    history = run["history"]
    lines = [
        Line(name=name, x=[h["round"] for h in rows], y=[h[name] for h in rows])
        for name in ("recall@50", "recall@10", "ndcg@10")
        if (rows := [h for h in history if h.get(name) is not None])
    ]
    if lines:
        svg = line_chart(
            lines, key="quality", alt=tell(lines, "quality by round"), x_label="round", y_label="validation"
        )
        caption = "Quality on the validation events after each round, before each device's own tuning of its tower."
        pictures["quality"] = Picture(svg=svg, caption=caption, table=_line_table("round", lines))
    spent = _epsilon_lines(history)
    if spent:
        privacy = run["privacy"]
        finite = [a for a in privacy["adversaries"] if a["epsilon"] is not None]
        svg = line_chart(spent, key="epsilon", alt=tell(spent, "epsilon by round"), x_label="round", y_label="epsilon")
        caption = " ".join(f"{b}." for b in words.bounds(finite, privacy["unit"]))
        pictures["epsilon"] = Picture(svg=svg, caption=caption, table=_line_table("round", spent))
    if tail := run.get("long_tail"):
        labels = [str(d) for d in tail["decile"]]
        pairs = {
            "share of training events": tail["train_share"],
            "share of shown items": tail["exposure_share"],
        }
        alt = "Shares by popularity decile: " + "; ".join(
            f"decile {d}: training {t:.1%}, shown {e:.1%}"
            for d, t, e in zip(labels, tail["train_share"], tail["exposure_share"], strict=True)
        )
        svg = paired_bars(
            labels, pairs, key="tail", alt=alt, x_label="popularity decile (1 = best known)", y_label="share"
        )
        rows = [[d, *values] for d, *values in zip(labels, *pairs.values(), strict=True)]
        table = Table(head=["decile", *pairs], rows=rows)
        pictures["tail"] = Picture(svg=svg, caption="Who gets shown, against who was known.", table=table)
    if stages := run["communication"].get("stages"):
        parts = {s["name"]: {"up": s["uplink_bytes"], "down": s["downlink_bytes"]} for s in stages}
        alt = "Bytes per device over the whole run: " + "; ".join(
            f"{name}: {words.size(p['up'])} up, {words.size(p['down'])} down" for name, p in parts.items()
        )
        svg = stacked_bars(parts, key="bytes", alt=alt, x_label="MB per device, whole run", unit=1e6)
        rows = [[name, words.size(p["up"]), words.size(p["down"])] for name, p in parts.items()]
        table = Table(head=["stage", "up", "down"], rows=rows)
        pictures["bytes"] = Picture(svg=svg, caption="What one device sends and receives.", table=table)
    return pictures


def baseline_svg(run: Mapping[str, Any], metric: str) -> str:
    """Return an SVG file of a metric: the run beside every baseline that has it; raises UsageError for another."""
    if metric not in run["metrics"]:
        raise UsageError(f"metric is {metric!r}: this run has {', '.join(run['metrics'])}")
    svg, _ = _bars(run, metric)
    return standalone(svg, f"{metric} on {run['dataset']['name']}, {run['evaluation']['protocol']}, test")


def _bars(run: Mapping[str, Any], metric: str) -> tuple[Markup, dict[str, float]]:
    """Return the bars of a metric, and the values that they show."""
    values = {"this run": run["metrics"][metric]} | {
        words.BASELINES.get(name, name): row[metric]
        for name, row in run["baselines"].items()
        if row and row.get(metric) is not None
    }
    alt = f"{metric}: " + ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    return bar_chart(values, key="base-" + metric.replace("@", "-"), alt=alt, highlight="this run"), values


def _baseline_pictures(run: Mapping[str, Any]) -> list[Picture]:
    """Draw one bar chart for each headline metric: the run beside every baseline that has it."""
    pictures = []
    for metric in _COMPARED:
        svg, values = _bars(run, metric)
        rows = [[name, value] for name, value in values.items()]
        pictures.append(Picture(svg=svg, caption=metric, table=Table(head=["who", metric], rows=rows)))
    return pictures


def _epsilon_lines(history: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Return one line for each adversary with finite epsilons; adversaries with equal lines share one."""
    series: dict[str, list[tuple[float, float | None]]] = {}
    for row in history:
        for name, value in (row.get("epsilon") or {}).items():
            series.setdefault(name, []).append((row["round"], value))
    return shared_lines(series)


def _line_table(x: str, lines: Sequence[Line]) -> Table:
    """Return the numbers of a line chart, one row an ``x``."""
    values = [dict(zip(line.x, line.y, strict=True)) for line in lines]
    at = sorted({place for line in lines for place in line.x})
    head = [x, *(line.name.replace(",\n", ", ") for line in lines)]
    return Table(head=head, rows=[[place, *(v.get(place) for v in values)] for place in at])


def _tables(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the page's tables; absent parts of the run have none."""
    privacy = run["privacy"]
    ours = {"this run": run["metrics"], "this run, validation": run["validation"]}
    others = {words.BASELINES.get(name, name): row for name, row in run["baselines"].items() if row}
    tables: dict[str, Any] = {
        "quality": _metric_table("who", ours | others, strong=1),
        "adversaries": _adversary_table(privacy),
        "mechanisms": Table(
            head=["release", "times", "who takes part", "clip", "noise multiplier", "noise in the sum", "remark"],
            rows=[
                [
                    m["name"],
                    m["steps"],
                    words.sampler(m),
                    m["clip_norm"],
                    m["noise_multiplier"],
                    words.sum_noise(m),
                    "; ".join(words.settings(m)) or None,
                ]
                for m in privacy["mechanisms"]
            ],
        ),
        "configuration": _pairs(run["config"]),
        "versions": _pairs(run["versions"]),
        "timing": _pairs(run["timing"]),
        "evaluation": _pairs(run["evaluation"]),
    }
    if windows := privacy.get("windows"):
        tables["windows"] = _window_table(windows)
    if cleaning := run["dataset"].get("cleaning"):
        tables["cleaning"] = _pairs(cleaning)
    if ablation := run.get("ablation"):
        shown = {name: {m: row.get(m) for m in _ABLATED} for name, row in ablation.items()}
        tables["ablation"] = _metric_table("what ran", shown, strong=1)
    for part in ("leak_probe", "index"):
        if content := run.get(part):
            tables[part] = _pairs(content)
    if groups := run.get("groups"):
        tables["groups"] = {name: _group_table(name, content) for name, content in groups.items()}
    return tables


def _adversary_table(privacy: Mapping[str, Any]) -> Table:
    """Return one row an adversary; without a bound the reason stands where the figure would."""
    rows = [
        [
            a["name"],
            words.ADVERSARIES.get(a["name"], ""),
            words.epsilon(a),
            words.small(a["delta"]) if a["epsilon"] is not None else None,
            words.ADJACENCY.get(a["adjacency"], a["adjacency"]) if a["epsilon"] is not None else None,
            a["sampling"] if a["epsilon"] is not None else None,
            a["accountant"] if a["epsilon"] is not None else None,
            a["reason"],
        ]
        for a in privacy["adversaries"]
    ]
    unit = f"epsilon (unit: {privacy['unit']})"
    head = ["adversary", "what it sees", unit, "delta", "neighbours", "sampling", "accountant", "remark"]
    return Table(head=head, rows=rows)


def _window_table(windows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Return one row an adversary and one column a number of windows."""
    names = [a["name"] for a in next(iter(windows.values()))]
    spelled = {count: [words.epsilon(a) for a in rows] for count, rows in windows.items()}
    head = ["adversary", *(f"epsilon after {count} window{'s' * (count != '1')}" for count in windows)]
    return Table(head=head, rows=[[name, *(column[i] for column in spelled.values())] for i, name in enumerate(names)])


def _group_table(name: str, group: Mapping[str, Any]) -> Table:
    """Return one row a group of people and, at the end, the gap between the best and the worst of them."""
    metrics = list(group["metrics"])
    rows = [
        [label, users, *(group["metrics"][m].get(label) for m in metrics)] for label, users in group["users"].items()
    ]
    gap = ["gap", None, *(group["gaps"].get(m) for m in metrics)]
    return Table(head=[name, "people", *metrics], rows=[*rows, gap], strong=frozenset({len(rows)}))


def _metric_table(what: str, rows: Mapping[str, Mapping[str, Any]], strong: int = 0) -> Table:
    """Return one row a name and one column a metric; the first ``strong`` rows stand out."""
    names = list(dict.fromkeys(metric for row in rows.values() for metric in row))
    body = [[label, *(row.get(metric) for metric in names)] for label, row in rows.items()]
    return Table(head=[what, *names], rows=body, strong=frozenset(range(strong)))


def _pairs(data: Mapping[str, Any], prefix: str = "") -> Table:
    """Return nested data as two columns: dotted name and value."""
    rows: list[list[Any]] = []
    for key, value in data.items():
        if isinstance(value, Mapping):
            rows.extend([*row] for row in _pairs(value, f"{prefix}{key}.").rows)
        elif isinstance(value, list | tuple) and any(isinstance(v, Mapping) for v in value):
            rows.extend([*row] for row in _pairs({f"{key}[{i}]": v for i, v in enumerate(value)}, prefix).rows)
        else:
            rows.append([f"{prefix}{key}", value])
    return Table(head=["name", "value"], rows=rows)
