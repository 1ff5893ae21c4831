"""``fedrecall tune``: search over a recipe's settings on validation, with optuna, resumable.

A search reads the held-out events of real users once a trial: on real people every trial is a release of its own
(docs/privacy.md, rule 12). By default the search is simulation only, outside epsilon, and says so. With
``count_noise`` each trial's validation sum is itself a Gaussian release, and the answer states the epsilon of all
trials together: what the same search would cost on real users, with secret noise in the place of the simulation's,
whose seed is known.
"""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedrecall.privacy.accounting.accounting import account_adversary
from fedrecall.privacy.mechanisms.noise import SeededNoise
from fedrecall.protocol.errors import FedrecallError, UsageError
from fedrecall.protocol.files import write_atomic, write_json_atomic
from fedrecall.protocol.item_table import ItemTable
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.randomness import derive_seed
from fedrecall.simulations.config import RunConfig, parse_config, to_toml
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.report.lines import Line
from fedrecall.simulations.report.pictures import line_chart, standalone
from fedrecall.simulations.runs.data import load_data
from fedrecall.simulations.runs.recaller import item_vectors
from fedrecall.simulations.runs.wiring import measure, recaller, world_of
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.world import Progress

STUDY, ANSWER, BEST, PICTURE = "study.db", "tune.json", "best.toml", "tune.svg"
_STUDY_NAME = "fedrecall"
_SMALL = ("recall@", "ndcg@", "mrr@", "precision@")
"""Metrics that are a mean over users of a number from 0 to 1: one user moves their sum by at most 1."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Where a setting is looked for: from ``low`` to ``high``, in whole numbers, or evenly in its logarithm."""

    key: str
    low: float
    high: float
    log: bool = False
    whole: bool = False


DEFAULT = (
    Range(key="start.content", low=1.0, high=20.0, log=True),
    Range(key="start.items_per_signal", low=6.0, high=25.0, log=True),
    Range(key="start.power", low=0.1, high=0.6),
    Range(key="start.cut", low=0.0, high=1.0),
    Range(key="start.decay", low=0.7, high=0.98),
    Range(key="start.popularity", low=0.05, high=2.0, log=True),
    Range(key="start.reach", low=2.0, high=40.0, log=True),
    Range(key="start.exponent", low=0.0, high=0.5),
    Range(key="server.learning_rate", low=0.03, high=10.0, log=True),
)
"""What is searched where nothing is named: the settings of the private start, and the rounds' step."""


def parse_range(text: str) -> Range:
    """Return the range that ``KEY=LOW:HIGH`` or ``KEY=LOW:HIGH:log`` names; two whole bounds search whole numbers.

    Raises:
        UsageError: it is not of that form, or its bounds are not in order.
    """
    key, _, bounds = text.partition("=")
    parts = bounds.split(":")
    try:
        low, high = float(parts[0]), float(parts[1])
        if len(parts) not in (2, 3) or parts[2:] not in ([], ["log"]) or not key:
            raise ValueError
    except (ValueError, IndexError):
        raise UsageError(f"{text!r} is no range: write KEY=LOW:HIGH or KEY=LOW:HIGH:log") from None
    log = len(parts) == 3
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log)):
        raise UsageError(f"{text!r}: LOW must be below HIGH, and above 0 for a logarithm")
    whole = not log and all(part.strip().lstrip("-").isdigit() for part in parts[:2])
    return Range(key=key.strip(), low=low, high=high, log=log, whole=whole)


def tune(
    config: RunConfig,
    *,
    out: Path,
    ranges: tuple[Range, ...],
    trials: int,
    metric: str,
    count_noise: float,
    resume: bool,
    progress: Progress,
) -> dict[str, Any]:
    """Search until ``trials`` trials are done; return, and write to ``out``, the best settings and every trial.

    The first trial is ``config`` itself. A trial is a function of the configuration, the ranges and the trials before
    it: a search that was killed goes on with ``resume`` and ends as if it had not been.

    Args:
        config: what to start from.
        out: folder of the search.
        ranges: what to search.
        trials: how many in all.
        metric: of validation, such as ``recall@50``.
        count_noise: deviation of the noise on a trial's validation sum over users; 0 leaves the search outside epsilon.
        resume: go on with the search in ``out``.
        progress: of all trials.

    Raises:
        UsageError: optuna is not installed, ``out`` holds something else, an unknown metric, ``count_noise`` under a
            plan without a trusted server, or settings that cannot be run.
        ConfigError: an unknown key, or a bound that its setting does not allow.
    """
    optuna = _optuna()
    if not metric.startswith(_SMALL):
        raise UsageError(f"metric is {metric!r}: choose one that starts with {', '.join(_SMALL)}")
    if count_noise and (config.privacy.unit, config.privacy.trust) != ("user", "central"):
        raise UsageError("a noised validation sum needs unit 'user' and trust 'central': nobody else may add it up")
    for one in ranges:
        _with(config, {one.key: int(one.low) if one.whole else one.low})
    question = {
        "config": config.published(),
        "ranges": [vars(r) for r in ranges],
        "metric": metric,
        "count_noise": count_noise,
    }
    study = _study(optuna, out, question, resume=resume)
    dataset = load_data(config, progress)
    done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    for number in range(len(done), trials):
        progress("trials", number, trials)
        study.sampler = optuna.samplers.TPESampler(seed=derive_seed(config.seed, "tune", number) % 2**32)
        # A killed trial stays without a value and counts for nothing; the same number is asked again.
        trial = study.ask()
        chosen = {} if number == 0 else {r.key: _suggest(trial, r) for r in ranges}
        # Noise is a function of seed and plan: trials of one plan would share it, and their difference be noiseless.
        own = {"seed": derive_seed(config.seed, "tune trial", number) % 2**63}
        try:
            exact = _trial(_with(config, chosen | own), dataset, out / "trial", metric, number, trials, progress)
        except FedrecallError as error:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise UsageError(f"trial {number} with {chosen} cannot be run: {error}; narrow the ranges") from error
        drawn = SeededNoise(config.seed, "tune", number).normal((), count_noise) if count_noise else 0.0
        trial.set_user_attr("settings", chosen)
        trial.set_user_attr("number", number)
        study.tell(trial, exact + float(drawn) / dataset.events.n_users)
    progress("trials", trials, trials)
    rows = sorted(
        (
            {"trial": t.user_attrs["number"], "value": t.value, "settings": t.user_attrs["settings"]}
            for t in study.trials
            if t.state == optuna.trial.TrialState.COMPLETE
        ),
        key=lambda row: row["trial"],
    )
    best = max(rows, key=lambda row: row["value"])
    tuned = _with(config, best["settings"])
    answer = {
        "metric": metric,
        "best": best,
        "preset": rows[0],
        "trials": rows,
        "privacy": _cost(config, dataset.events.n_users, [row["settings"] for row in rows], count_noise),
        "config": tuned.published(),
    }
    write_atomic(out / BEST, to_toml(tuned).encode())
    write_atomic(out / PICTURE, _picture(rows, metric).encode())
    write_json_atomic(out / ANSWER, answer)
    return answer


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UsageError("tuning needs optuna: install it with `pip install 'fedrecall[tune]'`") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, out: Path, question: dict[str, Any], *, resume: bool) -> Any:
    """Open or make the study of ``out``."""
    if (out / STUDY).exists() and not resume:
        raise UsageError(f"{out} holds a search: add --resume to go on with it, or choose another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=_STUDY_NAME, storage=f"sqlite:///{out / STUDY}", direction="maximize", load_if_exists=True
    )
    if study.user_attrs.setdefault("question", question) != question:
        raise UsageError(f"{out} holds a search of another question: choose another --out")
    study.set_user_attr("question", question)
    return study


def _suggest(trial: Any, one: Range) -> float | int:
    if one.whole:
        return int(trial.suggest_int(one.key, int(one.low), int(one.high)))
    return float(trial.suggest_float(one.key, one.low, one.high, log=one.log))


def _with(config: RunConfig, settings: dict[str, Any]) -> RunConfig:
    """Return ``config`` with settings by dotted key; an unknown key or a value out of bounds is refused by name."""
    data = config.model_dump(mode="json")
    for key, value in settings.items():
        *sections, last = key.split(".")
        place = data
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return parse_config(data)


def _trial(
    config: RunConfig, dataset: Dataset, folder: Path, metric: str, number: int, trials: int, progress: Progress
) -> float:
    """Train once and return the metric on validation, as devices would see it."""

    def renamed(stage: str, done: int, total: int) -> None:
        progress(f"{stage}, trial {number + 1} of {trials}", done, total)

    shutil.rmtree(folder, ignore_errors=True)
    split, world = world_of(config, dataset, renamed)
    try:
        trained = train(world, folder, resume=False, validate=None, progress=renamed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    table = ItemTable.from_vectors(item_vectors(trained.arrays, world.features), dataset.catalogue.ids)
    model = recaller(world, trained.arrays, table, trained.towers, name="trial")
    found = measure(model, dataset, split, "validation", config, renamed)
    if metric not in found.metrics:
        raise UsageError(f"metric is {metric!r}: this run measures {', '.join(found.metrics)}")
    # Divided by the enrolled devices, which are public, so that the noise on the sum over users is all that it needs.
    return float(np.sum(found.per_user[metric])) / dataset.events.n_users


def _cost(config: RunConfig, devices: int, settings: list[dict[str, Any]], count_noise: float) -> dict[str, Any]:
    """Return what the search costs, or would cost, on real users: every trial's releases and validation sum."""
    mechanisms: list[Mechanism] = []
    plan: Plan | None = None
    for number, chosen in enumerate(settings):
        plan = plan_for(_with(config, chosen), devices)
        named = [replace(m, name=f"{m.name}, trial {number + 1}") for m in plan.mechanisms]
        clip = 1.0 if count_noise else None
        count = Mechanism(name=f"validation, trial {number + 1}", clip_norm=clip, noise_multiplier=count_noise)
        mechanisms += [*named, count]
    whole = None if plan is None else account_adversary(replace(plan, mechanisms=tuple(mechanisms)), "released-model")
    together = "all trials and their noised validation sums together, everything released; simulated: seeded noise"
    exact = "outside epsilon: the settings were chosen on exact validation figures. Simulation only"
    return {
        "charged": bool(count_noise),
        "count_noise": count_noise,
        "simulated": True,
        "unit": config.privacy.unit,
        "adversary": "released-model",
        "adjacency": whole.adjacency if whole else None,
        "sampling": whole.sampling if whole else None,
        "epsilon": whole.epsilon if whole else None,
        "delta": plan.delta if plan else config.privacy.delta,
        "reason": together if count_noise else exact,
    }


def _picture(rows: list[dict[str, Any]], metric: str) -> str:
    """Draw every trial's value and the best so far."""
    numbers = [float(row["trial"] + 1) for row in rows]
    values = [float(row["value"]) for row in rows]
    best = np.maximum.accumulate(values).tolist()
    lines = [Line(name="best so far", x=numbers, y=best, steps=True), Line(name="trial", x=numbers, y=values)]
    alt = f"{metric} on validation by trial; the best is {best[-1]:.4f}, the first {values[0]:.4f}"
    chart = line_chart(lines, key="tune", alt=alt, x_label="trial", y_label=metric)
    return standalone(chart, "tuning")
