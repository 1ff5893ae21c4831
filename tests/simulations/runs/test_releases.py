"""What training releases is what was stated: sums of the events with the planned noise, each release with its own."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedrecall.client.events.store import EventStore
from fedrecall.models.shape import ModelShape
from fedrecall.protocol.errors import BudgetExhausted
from fedrecall.protocol.plan import Plan
from fedrecall.protocol.records import Arrays, Comparison
from fedrecall.server.training.start import compare, first_item_vectors
from fedrecall.simulations.config import parse_config
from fedrecall.simulations.training import start
from fedrecall.simulations.training.loop import train
from fedrecall.simulations.training.plan import plan_for
from fedrecall.simulations.training.start import start_arrays
from fedrecall.simulations.training.world import World

USERS, ITEMS, TOP = 40, 5000, 60
Recorded = list[dict[str, Any]]


def world(*, items: int = ITEMS, **sections: dict[str, Any]) -> World:
    """Return devices with 1 to 40 events, repeated ones among them."""
    rng = np.random.default_rng(5)
    counts = np.arange(1, USERS + 1)
    store = EventStore.from_columns(
        users=np.repeat(np.arange(USERS), counts),
        items=(items * rng.random(counts.sum()) ** 3).astype(np.int64),
        n_users=USERS,
        n_items=items,
    )
    model = {"dim": 4, "window": 5, "blocks": 0, "heads": 1, "hidden": 2, "user_dim": 1, "user_hidden": 2}
    config = parse_config({"threads": 1, "model": model, "local": {"negatives": 2}, **sections})
    shape = ModelShape(n_items=items, n_features=0, n_types=1, **model)
    return World(config=config, plan=plan_for(config, USERS), store=store, features=None, shape=shape)


@pytest.fixture
def releases(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Record what the start is made of, which are its releases, and what its devices are told to compare."""
    seen: Recorded = []

    def compared(*asked: Any, **options: Any) -> Comparison:
        told = compare(*asked, **options)
        seen.append({"comparison": told})
        return told

    def made(popularity: np.ndarray, moments: np.ndarray | None, *rest: Any, **options: Any) -> Any:
        # The last comparison is of the items that get vectors; devices were told the one before, if any.
        seen[:] = [{**seen[0], "popularity": popularity, "moments": moments}]
        return first_item_vectors(popularity, moments, *rest, **options)

    monkeypatch.setattr(start, "compare", compared)
    monkeypatch.setattr(start, "first_item_vectors", made)
    return seen


def stated_popularity(store: EventStore, unit: str) -> np.ndarray:
    """Return the sum that the plan states: of unit vectors in which the latest items weigh most, or of 0/1."""
    total = np.zeros(store.n_items)
    for user in range(store.n_users):
        items = list(dict.fromkeys(reversed(store.history(user).tolist())))
        weights = np.ones(len(items))
        if unit == "user":
            weights = np.array([round(127 * (0.3 + 0.7 * math.exp(-age / 3))) for age in range(len(items))])
            weights = weights / np.linalg.norm(weights)
        total[items] += weights
    return total


def stated_moments(store: EventStore, told: Comparison) -> np.ndarray:
    """Return the sum over devices of P K P, each of norm 1: dense matrices, one pair of items at a time."""
    size = len(told.top)
    aside = np.eye(size) - np.outer(told.direction, told.direction)
    total = np.zeros((size, size))
    for user in range(store.n_users):
        newest = [i for i in dict.fromkeys(store.history(user)[::-1].tolist()) if i in told.top]
        close = np.zeros((size, size))
        for a, one in enumerate(newest):
            for b, other in enumerate(newest):
                i, j = (int(np.flatnonzero(told.top == item)[0]) for item in (one, other))
                close[i, j] = np.exp(-(abs(a - b) - 1) / told.reach) * told.weights[i] * told.weights[j] * (a != b)
        moved = aside @ close @ aside
        total += moved / np.linalg.norm(moved) if np.linalg.norm(moved) > 1e-6 else 0.0
    return total


@pytest.mark.parametrize(
    ("unit", "trust"),
    [("user", "central"), ("interaction", "local"), ("interaction", "central")],
)
def test_the_start_is_the_stated_sums_with_the_planned_noise(unit: str, trust: str, releases: Recorded) -> None:
    """5,000 values: a standard error of 1 %, of which 5 are allowed; x 2/3, x 3/2 or one device's noise are far off.

    So little noise that another sum, such as 0/1 in place of unit vectors, is as far off as no noise is.
    Of the moments 1,770 values, 1.7 %. Where both share their draws, their correlation is 1 and not below 0.12.
    """
    made = world(
        privacy={"unit": unit, "trust": trust, "epsilon": 2000.0}, start={"items": TOP, "items_per_signal": 1e9}
    )
    start_arrays(made, lambda name: None, lambda *_: None)
    (seen,) = releases
    sigma = made.plan.mechanism("popularity").noise_multiplier
    planned = sigma * (np.sqrt(USERS) if trust == "local" else 1.0)
    noise = seen["popularity"] - stated_popularity(made.store, unit)
    assert noise.std() == pytest.approx(planned, rel=0.05) and abs(noise.mean()) < 5 * planned / np.sqrt(ITEMS)
    if unit == "interaction":
        assert seen["moments"] is None, "no bound of use under this unit"
        return
    sigma = made.plan.mechanism("second_moments").noise_multiplier
    matrix = seen["moments"] - stated_moments(made.store, seen["comparison"])
    upper, diagonal = matrix[np.triu_indices(TOP, 1)], np.diagonal(matrix)
    assert upper.std() == pytest.approx(sigma / np.sqrt(2), rel=0.085)
    assert diagonal.std() == pytest.approx(sigma, rel=0.45)
    for parts in ((diagonal, np.sqrt(2) * upper), (np.sqrt(2) * upper, diagonal)):
        drawn = np.concatenate(parts)
        assert abs(np.corrcoef(drawn, noise[: len(drawn)])[0, 1]) < 0.12


@pytest.mark.parametrize("refused", ["popularity", "second_moments"])
def test_the_start_is_charged_first_and_a_refusal_ends_it(refused: str, releases: Recorded) -> None:
    charged: list[str] = []

    def charge(name: str) -> None:
        charged.append(name)
        if name == refused:
            raise BudgetExhausted(name)

    with pytest.raises(BudgetExhausted):
        start_arrays(world(items=200), charge, lambda *_: None)
    assert charged == ["popularity", "second_moments"][: len(charged)] and charged[-1] == refused
    assert not any("popularity" in seen for seen in releases)
    start_arrays(world(items=200), lambda name: charged.append(name), lambda *_: None)
    assert charged[-2:] == ["popularity", "second_moments"] and "popularity" in releases[-1]


def moves(made: World, folder: Path) -> np.ndarray:
    """Return the model's moves of a training, [rounds, parameters]: noise, since no signal is of its size."""
    seen: list[np.ndarray] = []

    def look(round: int, arrays: Arrays, towers: object) -> dict[str, float]:
        seen.append(np.concatenate([arrays[n].ravel() for n in sorted(arrays) if "transformer.out." in n]))
        return {}

    train(made, folder, resume=False, validate=look, progress=lambda *_: None)
    return np.diff(np.array(seen, dtype=np.float64), axis=0)


LIMITED = {"count": 100, "cohort": 10, "sampling": "limited", "train": ["transformer.out."], "evaluate_every": 1}
SGD = {"optimiser": "sgd", "learning_rate": 1.0, "checkpoint_every": 100}


def limited(bands: int) -> World:
    privacy = {"epsilon": 1.0, "clip_norm": 1e-3}
    return world(items=40, privacy=privacy, start={"enabled": False}, rounds=LIMITED | {"bands": bands}, server=SGD)


@pytest.mark.parametrize(("bands", "lags"), [(1, (0.0, 0.0)), (3, (-0.4375 / 1.265625, -0.125 / 1.265625))])
def test_rounds_draw_the_noise_that_the_plan_correlates(bands: int, lags: tuple[float, float], tmp_path: Path) -> None:
    """2,000 values: 2.2 % a standard error; the coefficients are 1, -1/2, -1/8, whose products the lags are."""
    made = limited(bands)
    mechanism = made.plan.mechanism("rounds")
    assert mechanism.bands == bands
    found = moves(made, tmp_path) * (mechanism.sample_rate * USERS)
    std = mechanism.noise_multiplier * 1e-3 * (1.0 if bands == 1 else np.sqrt(1.265625))
    assert found.std() == pytest.approx(std, rel=0.11)
    for lag, expected in enumerate(lags, start=1):
        measured = np.mean(found[lag:] * found[:-lag]) / np.mean(found**2)
        assert measured == pytest.approx(expected, abs=0.11)


def test_the_noise_of_another_plan_is_another(tmp_path: Path) -> None:
    """Two plans of one seed on the same devices: equal draws would let the louder run be subtracted from the other."""
    one, other = limited(1), limited(1)
    louder = Plan.from_dict(other.plan.to_dict() | {"delta": 1e-6})
    other = World(config=other.config, plan=louder, store=other.store, features=None, shape=other.shape)
    first, second = (moves(w, tmp_path / name) for name, w in (("one", one), ("other", other)))
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.11
