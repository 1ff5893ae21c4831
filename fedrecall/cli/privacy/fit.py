"""What ``fedrecall privacy fit`` answers: its table, its words, and the configuration of the chosen plan."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from fedrecall.cli.console import table
from fedrecall.privacy.accounting.candidates import ROUNDS, SURVIVORS, Need
from fedrecall.privacy.accounting.planner import Fit
from fedrecall.protocol.errors import ConfigError, PlanError
from fedrecall.simulations.config import PrivacyConfig, parse_config
from fedrecall.simulations.report.words import bounds, epsilon, sampler, settings, small
from fedrecall.simulations.training.plan import plan_for

_FIGURES = (
    "cohort",
    "rounds",
    "noise_multiplier",
    "noise_of_mean",
    "noise_norm",
    "movement_noise",
    "signal_to_noise",
    "device_rounds",
    "best",
)
_CLOSE = 2e-3


def row(fit: Fit) -> dict[str, Any]:
    """Return a fit as plain data."""
    return {
        "sampling": fit.plan.mechanism(ROUNDS).sampling,
        **{name: getattr(fit, name) for name in _FIGURES},
        "adversaries": [asdict(a) for a in fit.adversaries],
        "plan": fit.plan.to_dict(),
    }


def rows_table(need: Need, fits: Sequence[Fit]) -> Table:
    """Return the fits as a table: what each asks of the devices, its noise, and epsilon against every adversary."""
    bounded = [a.name for a in fits[0].adversaries if a.epsilon is not None]
    dimensional = need.dimension is not None
    head = ["", "sampling", "cohort", "rounds", "device rounds", "noise multiplier", "bands", "noise of mean"]
    head += ["noise norm / clip"] * dimensional + ["noise / way", "signal / noise"] + [f"eps {n}" for n in bounded]
    rows = []
    for i, fit in enumerate(fits, 1):
        m = fit.plan.mechanism(ROUNDS)
        against = {a.name: epsilon(asdict(a)) for a in fit.adversaries}
        cells = [f"{i}{'*' if fit.best else ''}", m.sampling, fit.cohort, fit.rounds, f"{fit.device_rounds:.3g}"]
        cells += [f"{m.noise_multiplier:.4g}", m.bands, f"{fit.noise_of_mean:.3g}"]
        cells += [f"{fit.noise_norm:.3g}"] if fit.noise_norm is not None else []
        cells += [f"{fit.movement_noise:.3%}", f"{fit.signal_to_noise:.3g}", *(against[name] for name in bounded)]
        rows.append(cells)
    terms = f"{need.devices:,} devices, epsilon {need.epsilon:g} at delta {small(need.delta)}, unit {need.unit}"
    return table(f"plans that fit {terms}, trust {need.trust}; * no cheaper one of its sampling is as good", head, rows)


def explained(need: Need, fit: Fit, choice: int) -> list[str]:
    """Return what the columns mean, and plan ``choice`` with its bounds in words."""
    m = asdict(fit.plan.mechanism(ROUNDS))
    spread = f" over {need.dimension:,} numbers" if need.dimension else ""
    distributed = f"; noise shares are sized for {SURVIVORS:.0%} of a cohort, and all of it is counted on here"
    return [
        "noise of mean: standard deviation of the noise in one number of a round's mean update, at clip "
        f"{need.clip_norm:g}{distributed if need.trust == 'distributed' else ''}. It is proportional to the clip, "
        "which follows the norms of the updates: take their median, or let an adaptive clip find it.",
        "noise / way: noise of the whole training in one direction over the longest way that the clip allows "
        f"(rounds times clip); signal / noise: that way spread{spread or ' on one number'}, over the noise of each.",
        f"Plan {choice}: {sampler(m)}{''.join(f'; {text}' for text in settings(m))}.",
        *(f"{bound}." for bound in bounds([asdict(a) for a in fit.adversaries], need.unit)),
    ]


def configuration(need: Need, fit: Fit, clip: float | None) -> tuple[str | None, str]:
    """Return the TOML lines with which a run has the noise of ``fit``, or ``None`` and why there are none."""
    rounds = fit.plan.mechanism(ROUNDS)
    privacy: dict[str, Any] = {"unit": need.unit, "trust": need.trust, "epsilon": need.epsilon, "delta": need.delta}
    if clip is not None:
        privacy["clip_norm"] = clip
    sections: dict[str, dict[str, Any]] = {"privacy": privacy, "rounds": {"count": fit.rounds}}
    if need.share < 1:
        privacy["shares"] = _shares(need)
    else:
        sections["start"] = {"enabled": False}
    if rounds.sampling != "everyone":
        sections["rounds"] |= {"cohort": fit.cohort, "sampling": rounds.sampling}
        if rounds.sampling == "limited":
            sections["rounds"]["bands"] = rounds.bands
    try:
        made = plan_for(parse_config(sections), need.devices).mechanism(ROUNDS)
    except (ConfigError, PlanError) as error:
        return None, f"A run has no configuration for this plan: {error}"
    same = made.sampling == rounds.sampling and made.participations == rounds.participations
    if not same or not math.isclose(made.noise_multiplier, rounds.noise_multiplier, rel_tol=_CLOSE):
        return None, "A run has no configuration for this plan: its cohorts would differ; choose another one"
    return _toml(sections, clip), ""


def _shares(need: Need) -> dict[str, float]:
    """Return the shares of a start as large as ``need`` leaves it, split as a configuration does by default."""
    if need.unit == "interaction":
        return {"popularity": 1 - need.share, "rounds": need.share}
    usual = {name: share for name, share in PrivacyConfig().shares.items() if name != "rounds"}
    whole = sum(usual.values())
    return {**{name: (1 - need.share) * share / whole for name, share in usual.items()}, "rounds": need.share}


def _toml(sections: dict[str, dict[str, Any]], clip: float | None) -> str:
    lines = []
    for name, values in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {_value(value)}" for key, value in values.items()]
        if name == "privacy" and clip is None:
            lines.append("# clip_norm = the median norm of the updates, or [privacy.adaptive_clip]")
        lines.append("")
    return "\n".join(lines).strip()


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inner:.6g}" for key, inner in value.items()) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else repr(value)
