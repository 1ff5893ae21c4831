"""The private start of a deployment: its mechanisms are asked of devices one after the other, before the first round.

Each is charged before it is noised and kept before the next is asked for. Each runs once: one that was charged and then
lost in a crash is gone, since a second sum would be a second release, and the start goes on without it.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from fedrecall.privacy.ledger.ledger import Ledger
from fedrecall.privacy.mechanisms.noise import NoiseSource, check_noise
from fedrecall.protocol.errors import PlanError, UpdateError
from fedrecall.protocol.plan import Mechanism, Plan
from fedrecall.protocol.records import Arrays, CohortSum, Comparison, Release, Update
from fedrecall.protocol.statistics import (
    MAX_COMPARED,
    POPULARITY,
    SECOND_MOMENTS,
    Popularity,
    SecondMoments,
    Statistic,
    arrays_of,
    comparison_of,
)
from fedrecall.server.config import StartSettings
from fedrecall.server.training.aggregation import sum_statistics
from fedrecall.server.training.content import Content
from fedrecall.server.training.sampling import everyone
from fedrecall.server.training.start import (
    ITEM_TABLE,
    compare,
    first_item_vectors,
    first_model,
    release_popularity,
    release_second_moments,
)

Ask = Callable[[str, Arrays, np.ndarray, int], Iterable[Update]]
"""Asks devices for a statistic: mechanism, arrays of the ask, device numbers, most bytes of an answer's arrays."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class StartEnvironment:
    """What the start needs from outside.

    Attributes:
        ask: see ``Ask``.
        noise: the server's noise of a mechanism; ``simulated`` exactly where the plan is.
        key: names a mechanism's noise in the ledger.
        on_refused: told of each update that is refused and counts as nothing.
        keep: saves all releases so far, durably, before anything is made of them.
    """

    ask: Ask
    noise: Callable[[str], NoiseSource]
    key: Callable[[str], str]
    on_refused: Callable[[Update, UpdateError], None]
    keep: Callable[[Arrays], object]


def run_start(
    arrays: Arrays,
    plan: Plan,
    settings: StartSettings,
    content: Content | None,
    environment: StartEnvironment,
    *,
    released: Arrays,
    ledger: Ledger,
) -> Arrays:
    """Ask for what ``released`` does not hold yet, and return the first model.

    Without popularity, items are compared in the order of the catalogue; without second moments, content alone says
    what goes together; without either and without content, ``arrays`` stay as they are.

    Raises:
        PlanError: noise or comparison are not what the plan was accounted with, or what devices accept.
        BudgetExhausted: the ledger allows no release.
        UpdateError: more devices answered than there are.
    """
    known, n_items = dict(released), len(arrays[ITEM_TABLE])
    popularity_of = plan.mechanism(POPULARITY)

    def release(
        mechanism: Mechanism,
        statistic: Statistic,
        asked: Arrays,
        noised: Callable[[CohortSum, Mechanism, NoiseSource], Release],
    ) -> None:
        if mechanism.name in known:
            return
        if not plan.simulated and ledger.charged(mechanism.name, 0):
            _LOG.warning("%s was charged and then lost: it stays charged, the start goes on without", mechanism.name)
            return
        noise = environment.noise(mechanism.name)
        check_noise(noise, plan)
        updates = environment.ask(mechanism.name, asked, everyone(plan.devices), statistic.nbytes)
        total = sum_statistics(updates, statistic, on_refused=environment.on_refused)
        if total.devices > plan.devices:
            raise UpdateError(f"{total.devices} devices answered, {plan.devices} were asked: sum each device once")
        # Rule 8: charged and synced before anything is released.
        ledger.charge(mechanism.name, 0, environment.key(mechanism.name), datetime.now(UTC))
        known.update(noised(total, mechanism, noise).arrays)
        environment.keep(known)
        _LOG.info("%s is released", mechanism.name)

    def most_popular(count: int) -> Comparison:
        return compare(popularity, count, popularity_of, exponent=settings.exponent, reach=settings.reach)

    release(popularity_of, Popularity(n_items=n_items), {}, release_popularity)
    popularity, second = known.get(POPULARITY, np.zeros(n_items)), None
    if settings.compared:
        second = plan.mechanism(SECOND_MOMENTS)
        asked = arrays_of(most_popular(settings.compared))
        # What devices would refuse is not asked: it would be charged for nothing.
        release(second, SecondMoments(comparison=comparison_of(asked, n_items)), asked, release_second_moments)
    if not known and content is None:
        return arrays
    first = first_item_vectors(
        popularity,
        known.get(SECOND_MOMENTS),
        most_popular(max(settings.compared, content.items) if content else settings.compared),
        second,
        arrays[ITEM_TABLE].shape[1],
        power=settings.power,
        cut=settings.cut,
        content=content,
    )
    return first_model(arrays, first, settings)


def check_start(plan: Plan, settings: StartSettings | None, sizes: Mapping[str, int]) -> None:
    """Refuse a plan and ``settings`` of a start that do not fit each other, or that devices would not answer.

    Raises:
        PlanError: names what does not fit.
    """
    planned = {m.name: m for m in plan.mechanisms if m.name in (POPULARITY, SECOND_MOMENTS)}
    wanted: set[str] = set()
    if settings is not None:
        wanted = {POPULARITY, SECOND_MOMENTS} if settings.compared else {POPULARITY}
    if set(planned) != wanted:
        raise PlanError(f"the plan's start has {sorted(planned)}, the job's {sorted(wanted)}: make the job again")
    if settings is None:
        return
    if (plan.unit, plan.trust) != ("user", "central"):
        raise PlanError(
            f"devices answer the start under unit 'user' and trust 'central' alone, not {plan.unit!r} and "
            f"{plan.trust!r}: leave it out with start.enabled=false"
        )
    for m in planned.values():
        if (m.sampling, m.steps, m.min_survivors, m.adaptive_clip) != ("everyone", 1, 0, None):
            raise PlanError(f"{m.name} must be one release over everyone, void for nobody, with a fixed clip")
        if m.clip_norm not in (None, 1.0):
            raise PlanError(f"{m.name}.clip_norm is {m.clip_norm}: contributions have norm 1; make it 1")
    most = min(MAX_COMPARED, sizes["n_items"])
    if settings.compared and not 2 <= settings.compared <= most:
        raise PlanError(f"the start compares {settings.compared} items: choose start.items from 2 to {most}, or 0")


def bytes_of_start(settings: StartSettings | None, sizes: Mapping[str, int]) -> int:
    """Return how many bytes the arrays of a device's longest answer to the start hold."""
    if settings is None:
        return 0
    return max(Popularity(n_items=sizes["n_items"]).nbytes, settings.compared**2 // 2)
