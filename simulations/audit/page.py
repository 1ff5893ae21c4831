"""``audit.html``: one page for people, from ``audit.json`` alone, in one file that needs no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedrecall.protocol.files import write_atomic
from fedrecall.simulations.report import words
from fedrecall.simulations.report.page import Picture, Table
from fedrecall.simulations.report.pictures import Interval, interval_chart, paired_bars

VERDICTS = {
    "held": "held: the attempt failed, as it should",
    "broken": "broken: the attempt succeeded where a claim says that it must not",
    "shows": "shows: no claim forbids it; this is what can be learned",
    "not tested": "not tested: the reason is below",
}
_WHO = words.ADVERSARIES | {"auditor": "knows the run's seed and files, and uses them to check what others are told"}
_PICTURE = (
    "A claim holds as long as no bar of what was found rises above the bar of what is claimed. A low bar of what was "
    "found is not a better claim: it may be a weak attempt."
)
_METRICS = {
    "auc": "AUC",
    "tpr@1%": "hits at 1 % false alarms",
    "epsilon": "epsilon, lower bound",
    "hits": "things found",
    "bound": "measured",
}


def write_page(audit: Mapping[str, Any], out: Path) -> None:
    """Write the page of ``audit`` (the content of ``audit.json``) to ``out``, atomically; texts in it are escaped."""
    write_atomic(out, render(audit).encode())


def render(audit: Mapping[str, Any]) -> str:
    """Return the page of ``audit`` as HTML; the same audit gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("fedrecall.simulations.audit", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.number, "duration": words.duration}
    css, _, _ = PackageLoader("fedrecall.simulations.report", ".").get_source(Environment(), "report.css")
    attempts = audit["attempts"]
    return environment.get_template("audit.html").render(
        audit=audit,
        css=Markup(css),
        words=words,
        verdicts=VERDICTS,
        counts={v: sum(a["verdict"] == v for a in attempts) for v in VERDICTS},
        claims=_claims(audit["claims"]),
        groups={who: (_WHO.get(who, ""), _attempts(rows)) for who, rows in _by_adversary(attempts).items()},
        explained=Table(head=["attempt", "what was done", "what it would have seen"], rows=_explained(attempts)),
        picture=_picture(attempts),
        learned=_learned(attempts),
        settings=Table(head=["name", "value"], rows=[[k, v] for k, v in audit["settings"].items()]),
        versions=Table(head=["name", "value"], rows=[[k, v] for k, v in audit["versions"].items()]),
    )


def _claims(claims: Mapping[str, Any]) -> Table:
    rows = [
        [row["name"], _WHO.get(row["name"], ""), words.epsilon(row), row["sampling"], row["reason"]]
        for row in claims["adversaries"]
    ]
    return Table(
        head=["adversary", "what it sees", f"epsilon (unit {claims['unit']})", "sampling", "remark"], rows=rows
    )


def _by_adversary(attempts: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the attempts by who makes them, what was not tested left out; broken ones first."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for attempt in sorted(attempts, key=lambda a: a["verdict"] != "broken"):
        if attempt["verdict"] != "not tested":
            found.setdefault(attempt["adversary"], []).append(attempt)
    return dict(sorted(found.items(), key=lambda pair: list(_WHO).index(pair[0]) if pair[0] in _WHO else len(_WHO)))


def _attempts(attempts: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            a["name"],
            a["verdict"],
            _METRICS[a["metric"]],
            words.number(a["score"]),
            words.number(a["chance"]),
            _interval(a),
            words.number(a["claimed_epsilon"], 3),
            words.number(a["empirical_epsilon"], 3),
            a["trials"],
        ]
        for a in attempts
    ]
    head = [
        "attempt",
        "verdict",
        "measure",
        "result",
        "by chance",
        "interval",
        "claimed ε",
        "found ε at least",
        "trials",
    ]
    return Table(head=head, rows=rows, strong=frozenset(i for i, a in enumerate(attempts) if a["verdict"] == "broken"))


def _interval(attempt: Mapping[str, Any]) -> str | None:
    if attempt["low"] is None or attempt["high"] is None:
        return None
    return f"{attempt['low']:.3g} to {attempt['high']:.3g}"


def _explained(attempts: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    return [[a["name"], a["what"], a["power"]] for a in attempts if a["verdict"] != "not tested"]


def _picture(attempts: Sequence[Mapping[str, Any]]) -> Picture | None:
    """Draw what was found beside what is claimed, where there are both; numbers stand for names."""
    both = [a for a in attempts if a["claimed_epsilon"] is not None and a["empirical_epsilon"] is not None]
    if not both:
        return None
    labels = [str(number) for number in range(1, len(both) + 1)]
    pairs = {
        "claimed at most": [a["claimed_epsilon"] for a in both],
        "found at least": [a["empirical_epsilon"] for a in both],
    }
    alt = "; ".join(
        f"{a['name']}: claimed {a['claimed_epsilon']:.2f}, found {a['empirical_epsilon']:.2f}" for a in both
    )
    svg = paired_bars(labels, pairs, key="audit-epsilon", alt=alt, x_label="attempt", y_label="epsilon")
    rows = [[f"{n}. {a['name']}", a["claimed_epsilon"], a["empirical_epsilon"]] for n, a in enumerate(both, 1)]
    return Picture(svg=svg, caption=_PICTURE, table=Table(head=["attempt", *pairs], rows=rows))


def _learned(attempts: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Draw the AUC of each attack with its interval, by adversary; the colour is the verdict."""
    groups = _by_adversary([a for a in attempts if a["metric"] == "auc" and a["low"] is not None])
    rows = [a for group in groups.values() for a in group]
    if not rows:
        return None
    drawn = {a["name"]: {a["verdict"]: Interval(value=a["score"], low=a["low"], high=a["high"])} for a in rows}
    alt = "; ".join(f"{a['name']}: {a['score']:.2f}" for a in rows)
    return interval_chart({"": drawn}, key="audit-learned", alt=alt, x_label="AUC", chance=0.5)
