"""Attacks on federated recommendation: what each adversary makes of what it sees, with and without each defence."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from fedrecall.protocol.errors import FedrecallError
from fedrecall.protocol.records import Arrays
from fedrecall.server.training.rounds import ROUNDS
from fedrecall.simulations.audit.attacks.lists.on_lists import LISTS, attack_lists
from fedrecall.simulations.audit.attacks.lists.on_timing import LENGTH, attack_timing
from fedrecall.simulations.audit.attacks.models.on_models import DEVICES, attack_model
from fedrecall.simulations.audit.attacks.models.on_training import attack_training
from fedrecall.simulations.audit.attacks.models.promotion import DEFENCES
from fedrecall.simulations.audit.attacks.observed import variants
from fedrecall.simulations.audit.attacks.scores import not_tested
from fedrecall.simulations.audit.attacks.settings import Setting, settings_of
from fedrecall.simulations.audit.attacks.updates.on_attributes import ATTRIBUTE, attack_attributes, attack_queries
from fedrecall.simulations.audit.attacks.updates.on_updates import MEMBERSHIP, RECONSTRUCTION, attack_updates
from fedrecall.simulations.audit.watching.attempt import Attempt
from fedrecall.simulations.runs.data import load_data
from fedrecall.simulations.training.world import Progress, World, in_process

__all__ = ["MODELS", "SHARES", "Step", "attack_steps", "in_time"]

SHARES = {
    "updates": 0.25,
    "attributes": 0.15,
    "lists and times": 0.05,
    "models": 0.15,
    "models by defence": 0.1,
    "training": 0.3,
}
"""Of the time, by kind of attack; what one leaves over, or takes more, goes to the next."""

MODELS = 32
"""Shadow models of a membership attack."""

_UPDATES = 200
_DEVICES = 1000
_TIMED = 120

Left = Callable[[], float]
"""Seconds that are left."""

Groups = Mapping[str, tuple[str, ...]]

Step = Callable[[], list[Attempt]]


def attack_steps(
    world: World,
    arrays: Arrays,
    seed: int,
    budget_s: float,
    progress: Progress,
    *,
    models: int = MODELS,
    groups: Groups | None = None,
) -> dict[str, Step]:
    """Return the attacks by kind, to be made in this order: as each adversary, and as if each defence were missing.

    What the run's own arrays give away is attacked first, then what they would if the item table were trained too.
    An attack for which the time is over is in the list as not tested.

    Args:
        world: the run's.
        arrays: its released model, which attacks on updates start from.
        seed: of coins, noise and draws; the run's noise is never drawn again.
        budget_s: seconds; attacks that have begun are finished, so that it may take a little longer.
        progress: told of every step.
        models: shadow models of each membership attack, at most; fewer where the time is over.
        groups: attributes of the users, as ``Dataset.groups``; read with the data that the configuration names if
            absent.
    """
    world = in_process(world)  # of what attacks train, shadow models and poisoned ones, the weights alone matter
    settings, worlds = settings_of(world), variants(world)
    kinds: dict[str, Callable[[Left], Iterator[Attempt]]] = {
        "updates": lambda left: _updates(settings, arrays, seed, left, progress),
        "attributes": lambda left: _attributes(world, groups, arrays, settings, seed, left, progress),
        "lists and times": lambda left: _lists_and_times(world, arrays, seed, left, progress),
        "models": lambda left: _models(worlds, models, seed, left, progress),
        "models by defence": lambda left: _defended_models(worlds, models, seed, left, progress),
        "training": lambda left: _training(worlds, seed, left, progress),
    }
    return in_time(kinds, budget_s)


def in_time(kinds: Mapping[str, Callable[[Left], Iterator[Attempt]]], budget_s: float) -> dict[str, Step]:
    """Return ``kinds`` as steps, each told how much is left of its share of ``budget_s`` and of what others left."""
    spare = 0.0

    def timed(kind: str) -> list[Attempt]:
        nonlocal spare
        ends = time.perf_counter() + SHARES[kind] * budget_s + spare
        found = list(kinds[kind](lambda: ends - time.perf_counter()))
        spare = ends - time.perf_counter()
        return found

    return {kind: partial(timed, kind) for kind in kinds}


def _updates(
    settings: Sequence[Setting], arrays: Arrays, seed: int, left: Left, progress: Progress
) -> Iterator[Attempt]:
    for done, setting in enumerate(settings):
        progress("attacks on updates", done, len(settings))
        if left() > 0:
            yield from attack_updates(setting, arrays, devices=_UPDATES, seed=seed)
        else:
            yield from _skipped(setting, (MEMBERSHIP, RECONSTRUCTION))
    progress("attacks on updates", len(settings), len(settings))


def _models(worlds: Mapping[str, World], models: int, seed: int, left: Left, progress: Progress) -> Iterator[Attempt]:
    for number, (prefix, own) in enumerate(worlds.items()):
        seconds = left() / (len(worlds) - number)
        if seconds > 0:
            yield from attack_model(own, prefix, models=models, seconds=seconds, seed=seed, progress=progress)
        else:
            yield not_tested(f"{DEVICES}: {prefix}all", "released-model", "user", "the time given was over")


def _defended_models(
    worlds: Mapping[str, World], models: int, seed: int, left: Left, progress: Progress
) -> Iterator[Attempt]:
    """Yield membership where another defence takes the place of the plan's noise; of the run's own arrays alone."""
    prefix, world = next(iter(worlds.items()))
    if world.plan.unit != "user" or not world.plan.mechanism(ROUNDS).noise_multiplier:
        why = "other defences are tried in the place of a plan's noise, for unit user"
        yield not_tested(f"{DEVICES}: {prefix}other defences", "released-model", world.plan.unit, why)
        return
    others = [defence for defence in DEFENCES if defence != "plan"]
    for number, defence in enumerate(others):
        seconds = left() / (len(others) - number)
        if seconds > 0:
            yield from attack_model(
                world, prefix, models=models, seconds=seconds, seed=seed, progress=progress, defence=defence
            )
        else:
            name = f"{DEVICES}: {prefix}{defence}"
            yield not_tested(name, "released-model", "user", "the time given was over")


def _training(worlds: Mapping[str, World], seed: int, left: Left, progress: Progress) -> Iterator[Attempt]:
    for number, (prefix, own) in enumerate(worlds.items()):
        seconds = left() / (len(worlds) - number)
        yield from attack_training(own, prefix, seconds=seconds, seed=seed, progress=progress)


def _attributes(
    world: World,
    groups: Groups | None,
    arrays: Arrays,
    settings: Sequence[Setting],
    seed: int,
    left: Left,
    progress: Progress,
) -> Iterator[Attempt]:
    """Yield attribute inference from queries, and from every setting in which one device's update is seen."""
    unit = world.plan.unit
    try:
        groups = load_data(world.config, lambda *_: None).groups if groups is None else groups
    except FedrecallError as error:
        yield not_tested(ATTRIBUTE, "server", unit, f"the data set with the attributes cannot be read: {error}")
        return
    if not groups:
        yield not_tested(ATTRIBUTE, "server", unit, "the data set knows no attributes of its users")
        return
    single = [setting for setting in settings if setting.size == 1 and (not setting.clipped or setting.noised)]
    yield from attack_queries(world, arrays, groups, devices=_DEVICES, seed=seed)
    for done, setting in enumerate(single):
        progress("attribute inference", done, len(single))
        if left() > 0:
            yield from attack_attributes(setting, arrays, groups, devices=_DEVICES, seed=seed)
        else:
            yield from _skipped(setting, (ATTRIBUTE,))
    for setting in settings:
        if setting.size == 0:
            why = "only a noised sum over the cohort leaves: nothing in it belongs to one device"
            yield not_tested(f"{ATTRIBUTE}: {setting.name}", setting.adversary, setting.unit, why)
    progress("attribute inference", len(single), len(single))


def _lists_and_times(world: World, arrays: Arrays, seed: int, left: Left, progress: Progress) -> Iterator[Attempt]:
    """Yield what no update holds: lists of recommendations, and times and sizes of answers."""
    if left() <= 0:
        for name, adversary in ((LISTS, "server"), (LENGTH, "network")):
            yield not_tested(name, adversary, world.plan.unit, "the time given was over")
        return
    progress("lists and times", 0, 2)
    yield from attack_lists(world, arrays, devices=_DEVICES, seed=seed)
    progress("lists and times", 1, 2)
    yield from attack_timing(world, arrays, devices=_TIMED, seed=seed)
    progress("lists and times", 2, 2)


def _skipped(setting: Setting, attacks: Sequence[str]) -> Iterator[Attempt]:
    for attack in attacks:
        why = "the time given was over"
        yield not_tested(f"{attack}: {setting.name}", setting.adversary, setting.unit, why)
