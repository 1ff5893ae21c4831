"""An order that is no order of time is told from one that may be, without and with times."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fedrecall.client.events.store import EventStore
from fedrecall.simulations.data.importing.import_spec import ImportSpec
from fedrecall.simulations.data.importing.importer import import_files
from fedrecall.simulations.data.order import order_of, warning_of
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.data.synthetic import synthetic_dataset
from fedrecall.simulations.runs.sections import dataset_section

N_ITEMS, N_USERS = 60, 12


def histories(rng: np.random.Generator, *, repeats: bool = False) -> list[tuple[int, int, float]]:
    """Return rows (user, item, weight) of users one after the other, their items in a random order."""
    return [
        (user, int(item), float(rng.integers(1, 1000)))
        for user in range(N_USERS)
        for item in (rng.integers(0, N_ITEMS, 20) if repeats else rng.permutation(N_ITEMS)[:20])
    ]


def judged(rows: list[tuple[int, int, float]], ids: list[str], times: list[int] | None = None) -> str | None:
    """Import rows in their order, and say what the order looks like: items are numbered as the file lists them."""
    codes = {item: n for n, item in enumerate(dict.fromkeys(item for _, item, _ in rows))}
    store = EventStore.from_columns(
        users=np.array([user for user, *_ in rows]),
        items=np.array([codes[item] for _, item, _ in rows]),
        n_users=N_USERS,
        n_items=len(codes),
        times=None if times is None else np.array(times),
        weights=np.array([weight for *_, weight in rows], dtype=np.float32),
    )
    looks: str | None = order_of(store, [ids[item] for item in codes])["looks_like"]
    return looks


NUMBERS = [str(7 * n + 3) for n in range(N_ITEMS)]
NAMES = [f"film {n * 7919 % 1000}" for n in range(N_ITEMS)]


@pytest.mark.parametrize("way", ["ascending", "descending"])
@pytest.mark.parametrize("noise", [0, 2])
def test_what_a_file_is_sorted_by_is_named(rng: np.random.Generator, way: str, noise: int) -> None:
    back = way == "descending"
    rows = histories(rng)
    sorts = {
        f"item ids, {way}": (NUMBERS, lambda row: (row[0], -row[1] if back else row[1])),
        f"item ids as text, {way}": (NAMES, None),
        f"weights, {way}": (NUMBERS, lambda row: (row[0], -row[2] if back else row[2])),
    }
    for expected, (ids, key) in sorts.items():
        if key is None:
            ordered = sorted(sorted(rows, key=lambda row: NAMES[row[1]], reverse=back), key=lambda row: row[0])
        else:
            ordered = sorted(rows, key=key)
        for _ in range(noise):
            ordered.append(ordered.pop(int(rng.integers(len(ordered)))))
        assert judged(ordered, ids) == expected
        assert judged(ordered, ids, times=[1_600_000_000] * len(rows)) == expected, "equal times tell nothing"
        assert judged(ordered, ids, times=list(range(len(rows)))) is None, "times tell all"


def test_a_file_that_lists_item_after_item_is_named(rng: np.random.Generator) -> None:
    order = rng.permutation(N_ITEMS)
    rows = sorted(histories(rng), key=lambda row: order[row[1]])
    assert judged(rows, NAMES) == "the list of items, ascending"


@pytest.mark.parametrize("ids", [NUMBERS, NAMES])
@pytest.mark.parametrize("repeats", [True, False])
def test_an_order_that_may_be_of_time_is_not_accused(ids: list[str], repeats: bool) -> None:
    """200 logs in random order: none is taken for a sorted one, by any of four looks."""
    for seed in range(200):
        assert judged(histories(np.random.default_rng(seed), repeats=repeats), ids) is None


def test_a_log_of_which_every_item_has_one_owner_is_not_accused(rng: np.random.Generator) -> None:
    rows = [(user, 5 * user + n, 1.0) for user in range(N_USERS) for n in rng.permutation(5)]
    assert judged(rows, NUMBERS) is None and judged(rows, NAMES) is None


def test_the_generated_set_has_an_order_of_time() -> None:
    data = synthetic_dataset()
    order = order_of(data.events, data.catalogue.ids)
    assert order["by"] == "time, then file" and order["looks_like"] is None and warning_of(order) is None


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m", "movietweetings", "steam"])
def test_real_logs_are_not_accused(name: str, data_folder) -> None:
    data = load_dataset(name, data_path=data_folder(name))
    assert order_of(data.events, data.catalogue.ids)["looks_like"] is None


def test_an_import_warns(cache: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    rows = sorted(histories(rng))
    log = tmp_path / "log.csv"
    log.write_text("user,item\n" + "".join(f"{user},{NUMBERS[item]}\n" for user, item, _ in rows))
    report = import_files(ImportSpec(files=(log,), name="sorted", user="user", item="item"))["cleaning"]
    assert report["order"]["looks_like"] == "item ids, ascending" and report["order"]["share"] == 1.0
    assert "give --time, or run with --protocol random" in report["warnings"][-1]


def test_where_times_are_there_the_remedy_asks_for_finer_ones(cache: Path, tmp_path: Path) -> None:
    rows = [(user, item, day) for user in range(N_USERS) for day in range(2) for item in range(day, 20, 2)]
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\n" + "".join(f"{u},{i},2024-01-{1 + day:02d}\n" for u, i, day in rows))
    report = import_files(ImportSpec(files=(log,), name="days", user="user", item="item", time="time"))["cleaning"]
    assert "of equal times for 95% of neighbours" in report["warnings"][-1]
    assert "give finer times, or run with --protocol random" in report["warnings"][-1]


@pytest.mark.parametrize(("protocol", "decides"), [("loo", True), ("random", False), ("given", False)])
def test_a_run_says_whether_the_order_decided_what_was_held_out(
    rng: np.random.Generator, protocol: str, decides: bool
) -> None:
    data = synthetic_dataset()
    ordered = np.lexsort((data.events.items, data.events.users()))
    store = EventStore.from_columns(
        users=data.events.users(),
        items=data.events.items[ordered],
        n_users=data.events.n_users,
        n_items=data.events.n_items,
    )
    ids = tuple(map(str, range(store.n_items)))
    catalogue = dataclasses.replace(data.catalogue, ids=ids)
    said = dataset_section(dataclasses.replace(data, events=store, catalogue=catalogue), protocol)["order_warning"]
    assert ("run with --protocol random" in said) == decides
    assert ("what is held out does not depend on it" in said) != decides
