"""Checks without statistics: what leaves by name, charges before releases, void rounds, the start, the epsilons."""

import math
import time
from dataclasses import replace

import numpy as np

from fedrecall.models.recall import initial_arrays
from fedrecall.privacy.accounting.gaussian import gaussian_epsilon
from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.protocol.allow_list import PRIVATE_PREFIXES, SHARED_PREFIXES, WITHIN_CLIP, shared_names
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.randomness import derive_seed
from fedrecall.protocol.records import CohortSum
from fedrecall.server.training.rounds import run_rounds
from fedrecall.server.training.start import compare, first_item_vectors, first_model
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.audit.watching.trial import Trial, accounted
from fedrecall.simulations.training.start import start_settings


def names_on_the_wire(trial: Trial) -> list[Attempt]:
    """Look at the name of every array that left a device in the watched training."""
    began = time.perf_counter()
    seen = trial.noise
    allowed = {*seen.sizes, *([WITHIN_CLIP] if trial.rounds.adaptive_clip else [])}
    left = {name for r in seen.rounds for names in r.names for name in names}
    bad = {n for n in left if n not in allowed or n.startswith(PRIVATE_PREFIXES)}
    bad |= {n for n in left if n != WITHIN_CLIP and not n.startswith(SHARED_PREFIXES)}
    uneven = len({names for r in seen.rounds for names in r.names}) > 1
    hits = sorted(bad) + (["updates with different arrays"] if uneven else [])
    return [
        _hits(
            trial,
            "wire: names",
            began,
            hits,
            adversary="server",
            what="Every array that left a device was compared with what the round asked for and the allow-list",
            power="any array beside those that the plan clips and noises, in any round of the watched training",
            trials=sum(len(r.names) for r in seen.rounds),
        )
    ]


def charged_first(trial: Trial) -> list[Attempt]:
    """Compare, at each draw of noise, what the ledger's file said, and at the end the counts."""
    began = time.perf_counter()
    seen, hits = trial.noise, []
    hits = [f"{name} {round} was drawn before its charge was on disk" for name, round, ok in seen.draws if not ok]
    ledger = Ledger.read(trial.folder / "noise" / "ledger.jsonl")
    for mechanism in trial.plan.mechanisms:
        spent, made = ledger.spent()[mechanism.name], mechanism.steps
        if mechanism.name == trial.rounds.name:
            made = len(trial.visited)
        if spent != made:
            hits.append(f"{mechanism.name} is charged {spent} times and was released {made} times")
    released = [r.round for r in seen.rounds if not ledger.charged(trial.rounds.name, r.round)]
    hits += [f"round {round} was released and never charged" for round in released]
    return [
        _hits(
            trial,
            "ledger: before release",
            began,
            hits,
            adversary="auditor",
            what="At every draw of the server's noise the ledger's file was read: the charge must be on disk before "
            "there is anything to release, and charges and releases must agree in number",
            power="any release whose charge came later, or never",
            trials=len(seen.draws) + len(trial.plan.mechanisms),
        )
    ]


def void_rounds(trial: Trial) -> list[Attempt]:
    """Let one device fewer answer than the plan's minimum: the round must change nothing."""
    mechanism = trial.rounds
    if trial.plan.trust != "central" or mechanism.sampling in ("poisson", "fixed_size") or not mechanism.steps:
        return []
    began = time.perf_counter()
    state, environment = trial.wired
    cohort = environment.sampler.draw(0)
    strict = replace(mechanism, min_survivors=len(cohort), adaptive_clip=None, bands=1, steps=1)
    plan = replace(trial.plan, mechanisms=tuple(strict if m.name == strict.name else m for m in trial.plan.mechanisms))
    zeros = {name: np.zeros_like(state.arrays[name]) for name in state.trained}

    def too_few(round: int, *_: object) -> CohortSum:
        return CohortSum(round=round, devices=len(cohort) - 1, arrays=zeros)

    after = run_rounds(
        state,
        plan,
        replace(environment, collect=too_few),
        config=trial.world.config.server,
        ledger=Ledger.create(trial.folder / "void" / "ledger.jsonl", plan),
        on_round=lambda _: None,
    )
    moved = [name for name in state.trained if not np.array_equal(after.arrays[name], state.arrays[name])]
    return [
        _hits(
            trial,
            "void rounds",
            began,
            moved,
            adversary="server",
            what="One device fewer answered than the plan's minimum, on which the size of the noise may rest; a round "
            "like that is void. Counted is what it released all the same",
            power="any release of a round below its minimum",
            trials=1,
        )
    ]


def start_from_releases(trial: Trial) -> list[Attempt]:
    """Work out again, from its releases alone, what the start chose and made."""
    seen = trial.watched.start
    if not seen:
        return []
    began, hits = time.perf_counter(), []
    popularity, parts = np.asarray(seen["popularity"]), ("top", "weights", "direction")
    for rest, settings, chosen in seen["choices"]:
        again = compare(popularity, *rest, **settings)
        if not all(np.array_equal(getattr(chosen, part), getattr(again, part)) for part in parts):
            hits.append("what was compared does not follow from the released popularity")
    asked = seen.get("comparison")
    if asked is not None and not any(asked is chosen for *_, chosen in seen["choices"]):
        hits.append("devices compared other items than were chosen by the released popularity")
    (compared, *rest), more = seen["made_of"]
    if not any(compared is chosen for *_, chosen in seen["choices"]):
        hits.append("items got vectors by another choice than that of the released popularity")
    content = more.get("content")
    if content is not None and content.features is not trial.world.content:
        hits.append("items got vectors by other content than the public one")
    made = first_item_vectors(popularity, seen["moments"], compared, *rest, **more)
    if not np.array_equal(seen["vectors"], made.vectors):
        hits.append("the first item vectors do not follow from the releases")
    world = trial.enrolled[0]
    fresh = initial_arrays(world.shape, derive_seed(world.config.seed, "model"))
    public = {name: fresh[name].numpy() for name in shared_names(fresh)}
    first = first_model(public, made, start_settings(world.config, world.plan, world.shape.n_items))
    for name, array in first.items():
        if not np.array_equal(trial.watched.first[name], array):
            hits.append(f"the first {name} does not follow from the releases")
    return [
        _hits(
            trial,
            "start: from releases",
            began,
            hits,
            adversary="released-model",
            what="The items and vectors that the start made were worked out again from its noised releases alone",
            power="any choice that needs a number that was not released",
            trials=len(popularity),
        )
    ]


def epsilons(trial: Trial) -> list[Attempt]:
    """Work out the epsilon without amplification in another way: closed form, shifts from the unit's definition."""
    began, hits = time.perf_counter(), []
    claimed = {row.name: row for row in accounted(trial.plan)}
    least = least_epsilon(trial.plan)
    row = claimed["network"]
    if least is None and row.epsilon is not None:
        hits.append(f"network is claimed at {row.epsilon:.3f}, and something is released without noise or clip")
    if least is not None and (row.epsilon is None or row.epsilon < least - 1e-6):
        hits.append(f"network is claimed at {row.epsilon}, the noise allows for no less than {least:.4f}")
    if claimed["device-thief"].epsilon is not None:
        hits.append("a bound is claimed against who holds the device")
    if trial.plan.trust == "central" and claimed["server"].epsilon is not None:
        hits.append("a bound is claimed against the server, which sees updates without noise")
    main = claimed["released-model"].epsilon
    if main is not None and row.epsilon is not None and main > row.epsilon + 1e-3:
        hits.append("sampling makes the claim worse than no sampling")
    return [
        _hits(
            trial,
            "claims: epsilon",
            began,
            hits,
            adversary="auditor",
            what="The claims were worked out again from the plan by the closed form of the Gaussian mechanism and the "
            "definition of the unit, without the project's accountant",
            power="a claim below the closed form by 1e-6, without amplification; amplification by sampling rests on "
            "the accountant and on the check 'sampler'",
            trials=len(claimed),
        )
    ]


def least_epsilon(plan: Plan) -> float | None:
    """Return the epsilon of all releases without amplification, ``None`` for no bound."""
    running = [m for m in plan.mechanisms if m.steps]
    if any(not m.noise_multiplier or m.clip_norm is None for m in running):
        return None
    mu_squared = sum((_shift(plan, m) * _reach(m) / m.noise_multiplier) ** 2 for m in running)
    return gaussian_epsilon(math.sqrt(mu_squared), plan.delta)


def _shift(plan: Plan, mechanism: Mechanism) -> float:
    """Return how far a unit moves the sum, in clips: a block's event replaces a sample; popularity's adds to it."""
    replaced = plan.unit == "interaction" and mechanism.name == "rounds"
    return (
        2.0 if replaced or mechanism.sampling == "fixed_size" or (plan.unit, plan.trust) == ("user", "local") else 1.0
    )


def _reach(mechanism: Mechanism) -> float:
    """Return the norm of a device's participations behind the noise: by the matrix, inverted as it stands."""
    if mechanism.participations is None or mechanism.min_gap is None:
        return math.sqrt(mechanism.steps)
    d = np.ones(mechanism.bands)
    for k in range(1, mechanism.bands):
        d[k] = d[k - 1] * (2 * k - 3) / (2 * k)
    steps = mechanism.steps
    mixing = sum(d[k] * np.eye(steps, k=-k) for k in range(min(mechanism.bands, steps)))
    matrix = np.linalg.inv(np.asarray(mixing))
    starts = range(min(mechanism.min_gap, steps))
    reach = [matrix[:, s :: mechanism.min_gap][:, : mechanism.participations].sum(axis=1) for s in starts]
    return max(float(np.linalg.norm(row)) for row in reach)


def _hits(
    trial: Trial, name: str, began: float, hits: list[str], *, adversary: str, what: str, power: str, trials: int
) -> Attempt:
    said = f". Found: {'; '.join(hits[:3])}" if hits else ""
    return trial.attempt(
        name,
        began,
        adversary=adversary,
        what=f"{what}{said}.",
        score=float(len(hits)),
        metric="hits",
        chance=0.0,
        power=power,
        verdict="broken" if hits else "held",
        trials=trials,
        detail={"hits": hits[:20]},
    )
