"""The report's words: what a run's numbers mean, in plain sentences, and how numbers are spelled."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

METRICS = {
    "recall": "of the items that the person really chose next, the share that is among the first k shown",
    "precision": "of the first k shown, the share that the person really chose next",
    "ndcg": "like recall, but a hit near the top counts more (gain 1, discount log2 of the place)",
    "mrr": "one over the place of the first hit, 0 if it is not among the first k",
    "coverage": "the share of the catalogue that appears in at least one person's first k",
    "gini": "how unevenly the catalogue is shown: 0 is all items alike, 1 is one item for everybody",
    "novelty": "how little known the shown items are: the mean of -log2 of the share of people who had them",
    "diversity": "how unlike each other the items of one list are: 1 minus the mean similarity of pairs",
}

BASELINES = {
    "most_popular": "most popular",
    "own_first": "own items first",
    "item_knn": "item kNN",
    "ease": "EASE",
    "ease_weighted": "EASE, recent first",
    "central": "trained centrally",
    "local_only": "each device alone",
}

RANKINGS = {
    "ncf": "looked for among 99 sampled items only: such figures are not comparable with rankings of the whole "
    "catalogue",
    "mask": "looked for in a ranking of the whole catalogue without what the person had before",
    "recommend": "looked for in a ranking of the whole catalogue, what the person had before included: repeats count",
}

UNITS = {
    "user": "one whole device: everything that one person did",
    "interaction": "one single event of one person",
}

ADVERSARIES = {
    "released-model": "sees every release, index and metric that the system publishes",
    "server": "sees every message of every device, and who takes part",
    "network": "sees the size and time of encrypted messages, so who takes part, and the releases",
    "device-thief": "holds a device and reads its files",
}

ADJACENCY = {
    "add_remove": "one of them added or removed",
    "replace_one": "one of them replaced by another",
    "zero_out": "one of them sending zeros instead of its contributions",
}

NOT_PROTECTED = (
    "The catalogue (ids, titles, categories) is public and trains in the clear.",
    "A person with several devices is protected less than one with a single device: with two of them epsilon more "
    "than doubles.",
    "What a person does with a recommendation (opening a page, fetching a picture) is outside this page's "
    "epsilon as soon as somebody else can see it.",
    "Groups act alike: what is true of most people is learned on purpose. Epsilon bounds what one unit adds.",
)


def hidden(evaluation: Mapping[str, Any]) -> str:
    """Say exactly what was held out for the test of a run, and in what ranking it was looked for."""
    what = evaluation.get("held_out") or f"the test of protocol {evaluation['protocol']}"
    how = RANKINGS["ncf"] if evaluation["protocol"] == "ncf" else RANKINGS[evaluation.get("repeats", "mask")]
    return f"What was hidden: {what}. It was {how}."


def again(evaluation: Mapping[str, Any]) -> str:
    """Say how well repeats and new items were found, where a run recommends both; else nothing."""
    if "by_novelty" not in evaluation:
        return ""
    parts = [
        f"{part['recall@50']:.1%} of the {part['count']:,} {what}"
        for key, what in (("again", "that the person had before"), ("new", "that were new to the person"))
        if (part := evaluation["by_novelty"][key])["count"]
    ]
    return f"Among the first 50 were {' and '.join(parts)}."


def metric_name(metric: str) -> str:
    """Return what the part of ``metric`` before the cut-off means, or an empty string if unknown."""
    return METRICS.get(metric.partition("@")[0], "")


def round_up(value: float, digits: int = 3) -> str:
    """Spell an epsilon: rounded up, because a privacy loss must never look smaller than it is."""
    # 1e-9 forgives the last bit of a decimal such as 8.0 that was computed, not an honest excess.
    scaled = math.ceil(value * 10**digits - 1e-9)
    return f"{scaled / 10**digits:.{digits}f}"


def number(value: Any, digits: int = 4) -> str:
    """Spell any value of ``run.json`` for a table cell; a missing one is a dash."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if 100 <= abs(value) < 1e6:
            return f"{value:,.1f}"
        return f"{value:.{digits}f}" if 1e-3 <= abs(value) < 100 or value == 0 else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(number(v, digits) for v in value) or "-"
    return str(value)


def size(count: float) -> str:
    """Spell a number of bytes with a decimal unit."""
    power = 0
    while abs(count) >= 999.5 and power < 4:
        count, power = count / 1000.0, power + 1
    return f"{count:.{0 if power == 0 or count >= 100 else 1}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def duration(seconds: float) -> str:
    """Spell a time span."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def small(value: float) -> str:
    """Spell a delta: 1e-05 as 1e-5."""
    return re.sub(r"e-0+", "e-", f"{value:g}")


def bounds(adversaries: Sequence[Mapping[str, Any]], unit: str, warnings: Sequence[str] = ()) -> list[str]:
    """Say each bound with all that it depends on, never a bare number, and each lack of one.

    ``adversaries`` are the rows of ``privacy.adversaries`` in ``run.json``. Those with the same bound, on the
    same assumptions, share a sentence; an unbounded one gives its reason. ``warnings`` come first.
    """
    said: dict[tuple[Any, ...], list[str]] = {}
    without = []
    for row in adversaries:
        if row["epsilon"] is None:
            without.append(f"No bound against {row['name']}: {row['reason']}")
        else:
            terms = (row["epsilon"], row["delta"], row["adjacency"], row["sampling"], row["accountant"])
            said.setdefault(terms, []).append(row["name"])
    return (
        [f"Warning: {warning}" for warning in warnings]
        + [
            f"Epsilon {round_up(epsilon)} at delta {small(delta)} against {' and '.join(names)}. Unit: {unit}, "
            f"{UNITS.get(unit, unit)}; neighbours: {ADJACENCY.get(adjacency, adjacency)}; sampling: {sampling}; "
            f"accountant: {accountant}"
            for (epsilon, delta, adjacency, sampling, accountant), names in said.items()
        ]
        + without
    )


def epsilon(row: Mapping[str, Any]) -> str:
    """Spell the epsilon of an adversary's row; the words around it say of what."""
    return "no bound" if row["epsilon"] is None else round_up(row["epsilon"])


def sampler(mechanism: Mapping[str, Any]) -> str:
    """Say who takes part in a release of a mechanism of ``run.json``."""
    kind, rate = mechanism.get("sampling"), mechanism["sample_rate"]
    if kind == "limited":
        turns = f"devices in turn, {rate:.3g} of them a round"
        return f"{turns}: each at most {mechanism['participations']} times, {mechanism['min_gap']} rounds apart"
    if rate == 1:
        return "everyone"
    if kind == "fixed_size":
        return f"a secret uniform subset of fixed size, {rate:.3g} of the devices"
    return f"each by an independent secret coin of probability {rate:.3g}" if kind == "poisson" else f"{rate:.3g}"


def sum_noise(mechanism: Mapping[str, Any]) -> float | None:
    """Return the standard deviation of the noise in the sum at the (first) clip; ``None`` without a clip."""
    if mechanism["clip_norm"] is None:
        return None
    multiplier: float = mechanism.get("sum_noise_multiplier", mechanism["noise_multiplier"])
    clip_norm: float = mechanism["clip_norm"]
    return multiplier * clip_norm


def settings(mechanism: Mapping[str, Any]) -> list[str]:
    """Say what else there is to a mechanism of ``run.json``: void rounds, a clip that moves, noise that correlates."""
    said = []
    if bands := mechanism.get("bands", 1) - 1:
        said.append(f"the noise of a round is mixed with that of the {bands} before it (banded matrix factorisation)")
    if mechanism.get("min_survivors"):
        said.append(f"void below {mechanism['min_survivors']} contributions")
    if clip := mechanism.get("adaptive_clip"):
        count = mechanism["count_noise_multiplier"] / 2
        said.append(
            f"the clip follows the {clip['quantile']:.3g} quantile of the devices' norms, from how many were within "
            f"it: that count is released with noise of standard deviation {count:.3g} and is in the figures above"
        )
    return said


def versus(ours: float, theirs: float) -> str:
    """Say how ``ours`` stands to ``theirs``, relatively."""
    if theirs == 0.0:
        return "more than zero" if ours > 0.0 else "the same"
    change = ours / theirs - 1.0
    if abs(change) < 0.005:
        return "the same as"
    return f"{abs(change):.0%} {'above' if change > 0 else 'below'}"
