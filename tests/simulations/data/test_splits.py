from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrecall.protocol.errors import ConfigError, DataError
from fedrecall.simulations.data.dataset import Dataset
from fedrecall.simulations.data.registry import load_dataset
from fedrecall.simulations.data.splits import (
    Split,
    make_split,
    of_new_items,
    of_new_users,
    split_loo,
    split_ncf,
    split_temporal,
)

from .hand_made import dataset, histories, of


def test_loo_on_a_hand_made_example() -> None:
    split = split_loo(dataset([[(1, 30), (2, 10), (3, 20)], [(4, 1), (5, 1), (6, 1), (7, 1)], [(8, 5), (0, 6)], []]))
    assert of(split.test) == {0: [1], 1: [7]}  # times decide, then file order
    assert of(split.validation) == {0: [3], 1: [6]}
    assert histories(split.train) == [[2], [4, 5], [8, 0], []]
    assert histories(split.validation_context) == histories(split.train)
    assert histories(split.test_context) == [[2, 3], [4, 5, 6], [8, 0], []]
    assert split.notes["train_only_users"] == 2


def test_loo_without_times_takes_file_order() -> None:
    split = split_loo(dataset([[(1, 30), (2, 10), (3, 20)]], timed=False))
    assert of(split.test) == {0: [3]}
    assert split.notes["order"] == "file order"


def test_repeated_items_are_never_targets_that_the_mask_hides() -> None:
    split = split_loo(
        dataset([[(1, 1), (2, 2), (1, 3), (3, 4), (2, 5), (4, 6), (3, 7), (4, 8)], [(5, 1), (5, 2), (6, 3)]])
    )
    assert of(split.test) == {0: [4]}
    assert of(split.validation) == {0: [3]}
    assert histories(split.train) == [[1, 2, 1], [5, 5, 6]]
    assert histories(split.test_context)[0] == [1, 2, 1, 3, 2]
    assert split.notes["events_after_test"] == 2


events = st.lists(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 30)), max_size=10), min_size=1, max_size=6)


@given(events)
@settings(deadline=None)
def test_loo_agrees_with_a_loop_over_users(raw: list[list[tuple[int, int]]]) -> None:
    expected_test, expected_validation, expected_train, expected_context = {}, {}, [], []
    for user, history in enumerate(raw):
        ordered = [i for i, _ in sorted(history, key=lambda x: x[1])]
        new = [n for n, item in enumerate(ordered) if item not in ordered[:n]]
        if len(new) < 3:
            expected_train.append(ordered)
            expected_context.append(ordered)
            continue
        expected_test[user], expected_validation[user] = [ordered[new[-1]]], [ordered[new[-2]]]
        expected_train.append(ordered[: new[-2]])
        expected_context.append(ordered[: new[-1]])
    if not expected_test:
        with pytest.raises(DataError, match="3 different items"):
            split_loo(dataset(raw))
        return
    split = split_loo(dataset(raw))
    assert of(split.test) == expected_test
    assert of(split.validation) == expected_validation
    assert histories(split.train) == expected_train
    assert histories(split.test_context) == expected_context


@given(events)
@settings(deadline=None)
def test_temporal_never_trains_on_the_future(raw: list[list[tuple[int, int]]]) -> None:
    data = dataset(raw)
    try:
        split = split_temporal(data, test_share=0.2, validation_share=0.2)
    except DataError:
        return
    cuts = split.notes["cuts"]
    assert isinstance(cuts, dict)
    low, high = cuts["validation"], cuts["test"]
    for targets, context, start, end in (
        (split.validation, split.validation_context, low, high),
        (split.test, split.test_context, high, 10**9),
    ):
        expected = {}
        for user, history in enumerate(raw):
            ordered = sorted(history, key=lambda x: x[1])
            assert context.history(user).tolist() == [i for i, t in ordered if t < start]
            seen = {i for i, t in ordered if t < start}
            window = list(dict.fromkeys(i for i, t in ordered if start <= t < end and i not in seen))
            if window:
                expected[user] = window
        assert of(targets) == expected
    assert split.train.times is not None
    assert split.train.times.max() < low


def test_temporal_counts_new_users_and_new_items() -> None:
    old = [(item, time) for time, item in enumerate([0, 1, 2, 0, 1, 2, 0, 1])]
    split = split_temporal(dataset([old, [(3, 8)], [(0, 9), (5, 9)]]), test_share=0.1, validation_share=0.1)
    assert of(split.validation) == {1: [3]}
    assert of(split.test) == {2: [0, 5]}
    assert of_new_users(split.test_context, split.test).tolist() == [True]
    assert of_new_items(split.train, split.test).tolist() == [False, True]
    assert split.notes["test"] == {
        "users": 1,
        "targets": 2,
        "new_users": 1,
        "targets_of_new_users": 2,
        "new_items": 1,
        "targets_of_new_items": 1,
    }


def test_temporal_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(DataError, match="--protocol loo"):
        split_temporal(dataset([[(1, 1), (2, 2), (3, 3)]], timed=False))
    with pytest.raises(DataError, match="too few different times"):
        split_temporal(dataset([[(1, 1), (2, 1), (3, 1)]]))
    with pytest.raises(ConfigError, match="test_share"):
        split_temporal(dataset([[(1, 1)]]), test_share=0.7)


def test_ncf_candidates(small_dataset: Dataset) -> None:
    big = load_dataset("synthetic", seed=3)
    split, again, other = split_ncf(big, seed=1), split_ncf(big, seed=1), split_ncf(big, seed=2)
    for targets in (split.validation, split.test):
        assert targets.candidates is not None
        assert targets.candidates.shape == (len(targets.users), 100)
        np.testing.assert_array_equal(targets.candidates[:, 0], targets.items)
        for user, row in zip(targets.users, targets.candidates, strict=True):
            assert len(set(row.tolist())) == 100
            assert not set(row[1:].tolist()) & set(big.events.history(int(user)).tolist())
    assert split.test.candidates is not None
    lacks = np.ones((600, 400), dtype=bool)
    lacks[big.events.users(), big.events.items] = False
    expected = (lacks * 99 / lacks.sum(axis=1, keepdims=True)).sum(axis=0)
    counts = np.bincount(split.test.candidates[:, 1:].ravel(), minlength=400)
    chi2 = np.sum((counts - expected) ** 2 / expected)
    assert 200 < chi2 < 460  # uniform over what a device never had; drawn without replacement, so below 400
    np.testing.assert_array_equal(split.test.candidates, again.test.candidates)
    assert not np.array_equal(split.test.candidates, other.test.candidates)
    assert not np.array_equal(split.test.candidates[:, 1:], split.validation.candidates[:, 1:])  # type: ignore[index]
    with pytest.raises(DataError, match="--protocol loo"):
        split_ncf(small_dataset)


def test_make_split(small_dataset: Dataset) -> None:
    for protocol in ("loo", "temporal"):
        assert make_split(small_dataset, protocol).protocol == protocol
    with pytest.raises(ConfigError, match="loo, temporal, ncf, random, given"):
        make_split(small_dataset, "last")
    with pytest.raises(ConfigError, match="mask, recommend"):
        make_split(small_dataset, "loo", repeats="never")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ncf"):
        make_split(small_dataset, "ncf", repeats="recommend")


def check_partition(data: Dataset, split: Split) -> None:
    """Each user's train, validation and test events are its history, in this order."""
    for j, user in enumerate(split.test.users):
        parts = [*split.train.history(int(user)), split.validation.items[j], split.test.items[j]]
        assert parts == data.events.history(int(user)).tolist()
    assert split.train.n_events + 2 * len(split.test.users) == data.events.n_events


@pytest.mark.parametrize(("name", "users"), [("ml-100k", 943), ("ml-1m", 6040)])
def test_loo_on_movielens(data_folder: Callable[[str], Path], name: str, users: int) -> None:
    data = load_dataset(name, data_path=data_folder(name))
    split = split_loo(data)
    assert len(split.test.users) == len(split.validation.users) == users
    check_partition(data, split)


def test_the_well_known_negatives(data_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = data_folder("ml-1m")
    data = load_dataset("ml-1m", data_path=folder, catalogue="rated")
    file = folder / "ncf" / "ml-1m.test.negative"
    split = split_ncf(data, negatives_file=file)
    assert len(split.test.users) == 6040
    assert split.notes["targets_before_the_last_event"] == 0  # each is among the user's latest
    with open(folder / "ncf" / "ml-1m.test.rating") as lines:
        ratings = [tuple(map(int, line.split("\t"))) for line in lines]
    assert [(u, i) for u, i, *_ in ratings] == list(enumerate(split.test.items.tolist()))
    assert data.events.times is not None
    assert split.test.candidates is not None
    np.testing.assert_array_equal(split.test.candidates[:, 0], split.test.items)
    assert split.train.n_events == 1_000_209 - 2 * 6040
    had = [i in set(data.events.history(u).tolist()) for u, i in enumerate(split.test.items)]
    assert all(had)
    assert not any(i in split.test_context.history(u) for u, i in enumerate(split.test.items))
    with pytest.raises(DataError, match="rated"):
        split_ncf(load_dataset("ml-100k", data_path=data_folder("ml-100k")), negatives_file=file)
    broken = tmp_path / "broken"
    broken.write_text("(0,25)\t1\t2\n")
    with pytest.raises(DataError, match="broken line 1"):
        split_ncf(data, negatives_file=broken)
    broken.write_text(file.read_text().split("\n")[0])
    with pytest.raises(DataError, match="lacks 6039"):
        split_ncf(data, negatives_file=broken)
